"""The exactness of the whole step on a GPU, with the CUDA operators."""

import pytest
import torch

from exact.compare import gradient_gap, make_pair, resnet32, state_gap, tiny_imagenet_style
from mlaan import MLAAN

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
