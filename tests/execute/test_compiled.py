"""A compiled module gives what autograd gives, and no pass pays for gradients that it does not ask for.

Most tests leave the last step out, inductor's code: the graphs are those that it would get, cut down all the same.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlaan import MLAAN, Backbone, Engine
from mlaan.execute import AutogradModule, ModuleState, RandomState, compiled
from mlaan.execute.compiled import CompiledModule
from mlaan_kernels.blocks import Cotangent

SHAPE = (4, 3, 6, 6)
INPUT_ALONE, NO_INPUT, ALL = (True, False, False), (False, True, True), (True, True, True)

PASSES = {
    "Propagate": ([True], False),
    "Propagate one of two": ([False, True], False),
    "Propagate both": ([True, True], False),
    "Backward": ([False], True),
    "Backward, merged": ([True], True),
    "Propagate and Backward": ([True, False], True),
    "two Propagates and Backward": ([True, True], True),
}


@pytest.fixture
def graphs(monkeypatch):
    """Graphs run as they are; whether each is a backward is listed in the order of their compilation."""
    seen = []

    def as_it_is(graph, inputs, **options):
        seen.append(options.get("is_backward", False))

        def run(args):
            return graph(*args)

        run._boxed_call = True
        return run

    monkeypatch.setattr(compiled, "lower", as_it_is)
    return seen


def conv_net(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*first, nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.ReLU()).to(dtype)


def drawn(shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def groups(y, count):
    """A dense cotangent, then one that is pooled as well."""
    dense = [drawn(y.shape, y.dtype, seed=2 + i) for i in range(count)]
    return [Cotangent(dense[0]), *(Cotangent(one, drawn(y.shape[:2], y.dtype, seed=9)) for one in dense[1:])]


def assert_same(found, wanted, tolerance):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_passes_agree(plain, fast, x, tolerance, kinds=PASSES):
    """All kinds of passes on one forward, and the running statistics, are the same over both."""
    one, other = plain.forward(x, True), fast.forward(x, True)
    assert_same([other.y], [one.y], tolerance)
    for place, kind in enumerate(kinds):
        needs, need_weight = PASSES[kind]
        keep = place < len(kinds) - 1
        wanted = plain.backward(one.saved, groups(one.y, len(needs)), needs, need_weight, keep)
        found = fast.backward(other.saved, groups(other.y, len(needs)), needs, need_weight, keep)
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b, tolerance)
    assert not other.y.requires_grad
    assert_same(list(fast.module.buffers()), list(plain.module.buffers()), tolerance)


class Masks(TorchDispatchMode):
    """The output_mask of every convolution_backward that runs inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def masks(work, kind):
    needs, need_weight = PASSES[kind]
    done = work.forward(drawn(SHAPE), True)
    with Masks() as seen:
        work.backward(done.saved, groups(done.y, len(needs)), needs, need_weight, False)
    return seen.seen


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_pass_is_autograds(graphs, memory_format):
    net = conv_net().to(memory_format=memory_format)
    fast = CompiledModule(copy.deepcopy(net))
    plain = AutogradModule(net)
    x = drawn(SHAPE).to(memory_format=memory_format)
    assert_passes_agree(plain, fast, x, 1e-12)
    assert_passes_agree(plain, fast, x, 1e-12, [*reversed(PASSES)])
    assert_same([fast.forward(x, False).y], [plain.forward(x, False).y], 1e-12)
    assert fast.forward(x, False).saved is None
    assert [one.shape for one in fast.weights] == [one.shape for one in plain.weights]
    assert graphs == [
        False,
        True,
        True,
        True,
        False,
    ]  # one forward, three forms of its backward, one that keeps nothing


def test_autocast_and_another_batch_size_are_autograds(graphs):
    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    net = conv_net(torch.float32)
    fast = CompiledModule(copy.deepcopy(net), autocast)
    plain = AutogradModule(net, autocast)
    for samples in (4, 3):
        assert_passes_agree(plain, fast, drawn((samples, *SHAPE[1:]), torch.float32), 0.02, ["Propagate and Backward"])
    assert fast.forward(drawn(SHAPE, torch.float32), True).y.dtype == torch.bfloat16
    assert not fast.compiled.failed


def test_a_pass_computes_only_the_gradients_that_it_asks_for(graphs):
    """Weights' gradients are the second and third of a convolution's backward; the last convolution's comes first."""
    fast = CompiledModule(conv_net())
    assert masks(fast, "Propagate") == [INPUT_ALONE, INPUT_ALONE]
    assert masks(fast, "Backward") == [ALL, NO_INPUT]
    assert masks(fast, "Backward, merged") == [ALL, ALL]
    assert masks(fast, "two Propagates and Backward") == [*[INPUT_ALONE] * 4, ALL, NO_INPUT]


def test_torch_compile_alone_computes_all_gradients_for_any_pass():
    """What CompiledModule is for. Once this fails, torch.compile does it by itself."""
    work = AutogradModule(conv_net())
    work.module = torch.compile(work.module, backend="aot_eager", dynamic=False)
    assert masks(work, "Propagate") == [ALL, ALL]
    assert masks(work, "Backward") == [ALL, ALL]


def test_an_input_without_gradient_and_a_frozen_weight_cost_nothing(graphs):
    net = conv_net()
    net[4].weight.requires_grad_(False)
    plain, fast = AutogradModule(copy.deepcopy(net)), CompiledModule(net)
    assert_passes_agree(plain, fast, drawn(SHAPE), 1e-12)
    assert masks(fast, "Backward") == [(True, False, True), NO_INPUT]


def test_a_rebuild_moves_nothing_draws_the_same_numbers_and_is_compiled_once(graphs):
    net = conv_net(dropout=0.5)
    fast, state = CompiledModule(net), ModuleState(net, {net[1]: 2})
    x, moved = drawn(SHAPE), net[1].running_mean.clone()
    for step in range(3):
        random = RandomState(x.device)
        with state.moving():
            y = fast.forward(x, False).y
            if not step:
                one = conv_net(dropout=0.5)
                one[1].momentum = net[1].momentum
                one(x)
                torch.testing.assert_close(net[1].running_mean, one[1].running_mean, rtol=1e-12, atol=1e-12)
        assert not torch.equal(net[1].running_mean, moved)
        moved = net[1].running_mean.clone()
        before = [buffer.clone() for buffer in net.buffers()]
        with state.frozen(), random.replayed():
            again = fast.forward(x, True)
        torch.testing.assert_close(again.y, y, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
        fast.backward(again.saved, groups(y, 1), [True], True, False)
    assert (net[1].num_batches_tracked, net[5].num_batches_tracked) == (6, 3)
    assert graphs == [False, False, True]


@pytest.mark.parametrize("recompute", ["none", "each"])
def test_steps_over_compiled_modules_are_those_over_autograd(graphs, recompute):
    def engine():
        torch.manual_seed(0)
        stem = nn.Conv2d(3, 4, 3, padding=1)
        parts = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)]
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 10))
        net = nn.Sequential(stem, *parts, classifier).double()
        return Engine(Backbone(net, stem, parts, classifier), MLAAN(), 3, input_shape=(3, 6, 6), recompute=recompute)

    plain, fast = engine(), engine()
    fast.executor.work = [CompiledModule(work.module) for work in fast.executor.work]
    for seed in range(2):
        images, labels = drawn(SHAPE, seed=seed), torch.arange(4)
        wanted, found = plain.step(images, labels), fast.step(images, labels)
        assert_same([found.losses], [wanted.losses], 1e-12)
    a, b = fast.backbone.net.state_dict(), plain.backbone.net.state_dict()
    assert a.keys() == b.keys()
    assert_same([*a.values()], [*b.values()], 1e-12)
    assert len(graphs) == graphs.count(False) + graphs.count(True) > 3


def test_more_shapes_than_the_limit_are_said_once_and_run_uncompiled(graphs):
    net = conv_net()
    plain, fast = AutogradModule(copy.deepcopy(net)), CompiledModule(net, name="local module 7")
    others = [CompiledModule(conv_net()) for _ in range(2)]
    with torch._dynamo.config.patch(recompile_limit=1):
        assert_passes_agree(plain, fast, drawn(SHAPE), 1e-12, ["Backward"])
        with pytest.warns(
            RuntimeWarning, match=r"local module 7 runs uncompiled .* the 1 .*raise torch._dynamo.config"
        ):
            assert_passes_agree(plain, fast, drawn((3, *SHAPE[1:])), 1e-12)
        with warnings.catch_warnings(action="error"):
            assert_passes_agree(plain, fast, drawn((2, *SHAPE[1:])), 1e-12)
        for other in others:  # the limit is each module's own
            other.forward(drawn(SHAPE), True)
    assert not any(other.compiled.failed for other in others)


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_graph_that_inductor_cannot_compile_is_said_once_and_runs_uncompiled(graphs, monkeypatch, fails):
    as_it_is = compiled.lower

    def failing(graph, inputs, **options):
        if options.get("is_backward", False) == (fails == "backward"):
            raise ValueError("no compiler here\nand more")
        return as_it_is(graph, inputs, **options)

    monkeypatch.setattr(compiled, "lower", failing)
    net = conv_net()
    plain, fast = AutogradModule(copy.deepcopy(net)), CompiledModule(net, name="local module 3")
    with pytest.warns(RuntimeWarning, match=r"local module 3 runs .*: ValueError: no compiler here\.") as said:
        assert_passes_agree(plain, fast, drawn(SHAPE), 1e-12)
    assert len(said) == 1
    with warnings.catch_warnings(action="error"):
        assert_passes_agree(plain, fast, drawn(SHAPE), 1e-12)
        assert masks(fast, "Propagate") == [INPUT_ALONE, INPUT_ALONE]


def test_a_module_that_cannot_be_traced_in_one_graph_runs_uncompiled(graphs):
    class Breaks(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x

    net = nn.Sequential(conv_net(), Breaks())
    plain, fast = AutogradModule(copy.deepcopy(net)), CompiledModule(net)
    with pytest.warns(RuntimeWarning, match="a local module runs uncompiled"):
        assert_passes_agree(plain, fast, drawn(SHAPE), 1e-12)
    assert not graphs


def test_an_error_of_the_module_itself_is_not_swallowed(graphs):
    fast = CompiledModule(conv_net())
    with pytest.warns(RuntimeWarning, match="runs uncompiled"), pytest.raises(RuntimeError, match="channels"):
        fast.forward(drawn((2, 7, 6, 6)), True)


@pytest.mark.slow
def test_inductors_code_gives_autograds_gradients_and_computes_no_others():
    from torch._inductor import config

    # vec_isa_ok: else it spends many seconds on trying which instructions this CPU has
    with config.patch({"cpp.vec_isa_ok": False}):
        for dtype, tolerance in [(torch.float32, 1e-5), (torch.float64, 1e-12)]:
            net = conv_net(dtype)
            plain, fast = AutogradModule(copy.deepcopy(net)), CompiledModule(net)
            for _ in range(2):
                assert_passes_agree(plain, fast, drawn(SHAPE, dtype), tolerance, ["Propagate and Backward"])
            assert not fast.compiled.failed
        assert masks(fast, "Propagate and Backward") == [INPUT_ALONE, INPUT_ALONE, ALL, NO_INPUT]
