"""Which kernels an engine runs by, and what it says where it cannot have those asked for."""

import warnings
from contextlib import suppress

import pytest
import torch
from torch import nn

from mlaan import DGL, MLAAN, Engine, UserError
from mlaan.execute import AutogradModule, FusedModule, choose_kernels
from mlaan.models import CifarResNet, build
from mlaan_kernels import choice


def make_engine(model=None, **settings):
    return Engine(model or CifarResNet(20), DGL(head="light"), 3, input_shape=(3, 8, 8), **settings)


@pytest.fixture
def compiled(monkeypatch):
    """As on a machine without TRITON_INTERPRET."""
    monkeypatch.setattr(choice, "interpreting", lambda: False)


def test_on_a_cpu_auto_is_pytorch(compiled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = make_engine()
    assert engine.kernels == "reference"
    assert all(isinstance(work, AutogradModule) for work in engine.executor.work)


def test_triton_by_name_without_a_gpu_is_refused(compiled):
    with pytest.raises(UserError, match=r"train.kernels = 'triton' cannot be had on cpu: they need a CUDA device"):
        make_engine(kernels="triton")
    with pytest.raises(UserError, match=r"train.kernels = 'tritn' must be 'triton', 'auto' or"):
        make_engine(kernels="tritn")


def test_a_plan_for_a_gpu_needs_none(compiled):
    """Nothing runs on the meta device: the plan is for a GPU elsewhere."""
    with torch.device("meta"):
        engine = Engine(build("resnet18", 10), DGL(head="light"), 3, input_shape=(3, 32, 32), kernels="triton")
    assert engine.kernels == "triton"
    assert engine.describe(8)["fused"]


def test_triton_has_no_float64():
    with pytest.raises(UserError, match=r"float64 has no Triton kernels: use float32"):
        make_engine(CifarResNet(20).double(), kernels="triton")


class _Gpu:
    """A weight on a GPU that is not there."""

    def __init__(self, dtype):
        self.dtype, self.device = dtype, torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "precision", "chosen"), [((9, 0), "float32", "triton"), ((8, 0), "bfloat16", "triton")]
)
def test_on_a_gpu_auto_is_triton(monkeypatch, compiled, capability, precision, chosen):
    monkeypatch.setattr(choice, "_capability", lambda device: capability)
    assert choose_kernels("auto", _Gpu(torch.float32), precision) == chosen
    assert choose_kernels("reference", _Gpu(torch.float32), precision) == "reference"


def test_on_an_old_gpu_auto_says_what_is_lost(monkeypatch, compiled):
    monkeypatch.setattr(choice, "_capability", lambda device: (7, 5))
    with pytest.warns(RuntimeWarning, match=r"slower and with more memory: its compute capability is 7.5, and 8.0"):
        assert choose_kernels("auto", _Gpu(torch.float32), "float32") == "reference"


def test_fused_memory_policy_runs_chains_on_a_cpu(compiled):
    engine = make_engine(recompute="fused")
    assert engine.kernels == "reference"
    assert all(isinstance(work, FusedModule) for work in engine.executor.work)
    assert not any(work.plain for work in engine.executor.work)


def test_parts_without_a_fused_form_are_named():
    with pytest.warns(RuntimeWarning, match=r"parts of the network have no fused form \(.*CNBlock.*\)"):
        Engine(build("convnext_tiny", 10), "end_to_end", 1, input_shape=(3, 32, 32), recompute="fused")


def test_a_step_with_a_part_that_is_not_fused():
    """Chains and plain parts in one module, at reach 2: all gradients, in every schedule, as with plain parts alone."""

    def net():
        torch.manual_seed(0)
        model = CifarResNet(20).double()
        model.layer2[1].relu = nn.Softplus()
        return model

    images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,))
    light = MLAAN(preset="light", reach=2)
    wanted = Engine(net(), light, 3, input_shape=(3, 8, 8))
    wanted.gradients(images, labels)
    for schedule in ("lean", "full"):
        with pytest.warns(RuntimeWarning, match=r"1 of 10 parts .* \(BasicBlock\)"):
            found = Engine(net(), light, 3, input_shape=(3, 8, 8), recompute="fused", schedule=schedule)
        found.gradients(images, labels)
        for a, b in zip(found.backbone.net.parameters(), wanted.backbone.net.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_the_form_that_a_step_asks_for_ends_with_it():
    images = torch.randn(2, 3, 8, 8)
    seen = []
    usual = choice.use_triton
    with choice.using("reference"):
        assert choice.use_triton("any", "auto", images) is False
    with suppress(RuntimeError), choice.using("triton"):
        seen.append(choice._default.get())
        raise RuntimeError
    assert seen == ["triton"]
    assert choice._default.get() == "auto"
    assert usual("any", "auto", images) is False


def test_a_gpu_that_operators_cannot_use_is_named_once(monkeypatch, compiled):
    monkeypatch.setattr(choice, "_capability", lambda device: (7, 0))
    monkeypatch.setattr(choice, "_warned", set())
    tensor = _Gpu(torch.float32)
    with pytest.warns(RuntimeWarning, match="operators such as conv1x1 run their slower PyTorch reference"):
        assert not choice.use_triton("conv1x1", "auto", tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not choice.use_triton("conv1x1", "auto", tensor)
