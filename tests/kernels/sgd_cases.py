"""What the tests of the SGD operator share: inputs, rules, devices and comparisons."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mlaan_kernels.sgd_update import Twin, sgd_update

SIZES = [(1,), (3,), (17,), (1025,), (100003,), (0,), (4, 3, 3, 3), (64, 16, 1, 1), (5, 0, 2), ()]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
RULES = {
    "plain": {"learning_rate": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "decay": {"learning_rate": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 1e-2},
    "momentum": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4},
    "nesterov": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
}
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["f64", "f32"])
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
forms = pytest.mark.parametrize("implementation", ["reference", "native"])


class State(NamedTuple):
    """What one update reads and writes."""

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    twins: list[Twin]

    def written(self) -> list[Tensor]:
        return [*self.params, *self.momenta, *(twin.tensor for twin in self.twins)]


def make_state(
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    twin_counts: Sequence[int] = (0, 1, 3),
    seed: int = 0,
) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).to(device)

    params = [draw(shape) for shape in shapes]
    counts = [twin_counts[index % len(twin_counts)] for index in range(len(shapes))]
    twins = [Twin(index, draw(shapes[index]), 0.9 + 0.03 * k) for index, n in enumerate(counts) for k in range(n)]
    return State(params, [draw(shape) for shape in shapes], [torch.zeros_like(p) for p in params], twins[::-1])


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Elementwise within the dtype's tolerance, relative to the tensor's largest element."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        tolerance = TOLERANCE[e.dtype]
        torch.testing.assert_close(
            a, e, rtol=tolerance, atol=tolerance * scale, msg=lambda text, index=index: f"[{index}] {text}"
        )


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit, any NaN equal to any other."""
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


def assert_native_is_reference(state: State, **arguments: Any) -> None:
    """Runs both forms for three steps on equal inputs; the gradients must come out untouched."""
    other = copy.deepcopy(state)
    grads = [grad.clone() for grad in state.grads]
    for _ in range(3):
        native = sgd_update(*state, **arguments, implementation="native")
        reference = sgd_update(*other, **arguments, implementation="reference")
        assert (native is None) == (reference is None)
        if native is not None and reference is not None:
            assert native.dtype == reference.dtype == torch.int32
            assert native.shape == reference.shape == ()
            assert native.item() == reference.item()
    assert_close(state.written(), other.written())
    assert_same(state.grads, grads)


def kernels_launched(work: Callable[[], object]) -> list[str]:
    """The names of the CUDA kernels that `work` launches, without those that would poison fresh memory."""
    torch.use_deterministic_algorithms(False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() or [] if event.device_type == torch.profiler.DeviceType.CUDA]
