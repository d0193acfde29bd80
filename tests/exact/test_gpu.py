"""The exactness of the whole step on a GPU, with the CUDA operators."""

import pytest
import torch

from exact.compare import gap, gradient_gap, make_pair, resnet32, state_gap, tiny_imagenet_style
from mlaan import MLAAN, Engine

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _reproducible():
    """cuDNN's nondeterministic weight gradients would blur a comparison to nine digits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("preset", ["paper", "authors", "light"])
@pytest.mark.parametrize(
    ("model", "modules", "reach", "size"), [(resnet32, 15, 2, 16), (tiny_imagenet_style, 8, 3, 32)]
)
@pytest.mark.parametrize("memory", [{}, {"schedule": "full"}, {"recompute": "each"}], ids=str)
def test_the_judges_gradients_and_state(model, modules, reach, size, preset, memory):
    method = MLAAN(preset=preset, reach=reach)
    assert gradient_gap(make_pair(model, modules, method, size, device="cuda", **memory), size) < 1e-9
    assert state_gap(make_pair(model, modules, method, size, device="cuda", **memory), size, 3) < 1e-9


def _steps(executor, precision, dtype, **named):
    torch.manual_seed(0)
    backbone = resnet32()
    backbone.net.to("cuda", dtype)
    settings = {"input_shape": (3, 16, 16), "learning_rate": 0.5, "precision": precision, "executor": executor}
    engine = Engine(backbone, MLAAN(), 8, **settings, **named)
    random = torch.Generator("cuda").manual_seed(0)
    losses = []
    for step in range(5):
        engine.learning_rate = 0.5 ** (step + 1)
        images = torch.randn(8, 3, 16, 16, generator=random, device="cuda", dtype=dtype)
        losses.append(engine.step(images, torch.randint(10, (8,), generator=random, device="cuda")).losses)
    state = engine.state_dict()
    tensors = {(part, key): v for part in ("backbone", "heads", "optimizer") for key, v in state[part].items()}
    return engine, torch.stack(losses), tensors


@pytest.mark.parametrize("executor", ["streams", "graph"])
@pytest.mark.parametrize("named", [{}, {"schedule": "full"}, {"schedule": "full", "recompute": "each"}], ids=str)
def test_streams_and_graphs_take_the_eager_steps(executor, named):
    """In float64, over five steps, the learning rate another one each time."""
    engine, losses, ours = _steps(executor, "float32", torch.float64, **named)
    _, wanted, theirs = _steps("eager", "float32", torch.float64, **named)
    assert getattr(engine.executor, "obstacle", "") == ""
    assert gap(losses, wanted) < 1e-11
    assert max(gap(ours[key], theirs[key]) for key in theirs if theirs[key].is_floating_point()) < 1e-9


@pytest.mark.parametrize("executor", ["streams", "graph"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_streams_and_graphs_with_fused_kernels_are_near_the_eager_steps(executor, precision):
    engine, losses, _ = _steps(executor, precision, torch.float32, schedule="full")
    _, wanted, _ = _steps("eager", precision, torch.float32, schedule="full")
    assert engine.kernels == "triton"
    assert getattr(engine.executor, "obstacle", "") == ""
    assert torch.allclose(losses[:3], wanted[:3], rtol=2e-2)
