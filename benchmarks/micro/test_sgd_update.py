"""sgd_update on ResNet-50's parameters, one EMA twin each, against what PyTorch offers for the same work.

    pytest benchmarks/micro/test_sgd_update.py

Every row is first checked against the reference at this very size in the same run; a wrong result is a failure,
never a time. The floor is the row's bytes (README of the operator) over the bandwidth of a large in-place sum
here: on a CPU a plain copy also reads what it overwrites, so its bandwidth would flatter.
"""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor

from mlaan_kernels.library import NativeUnavailableError
from mlaan_kernels.sgd_update import Twin, sgd_update

KEEP = 0.99
RULE = {"learning_rate": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
BYTES_PER_PARAMETER = 20 + 8  # parameter, gradient and momentum; the twin
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


class Contender:
    """Own copies of the inputs and a `step` that updates them."""

    def __init__(self, name: str, device: str) -> None:
        torch.manual_seed(0)
        weights = torchvision.models.resnet50().to(device).parameters()
        self.params = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
        self.twins = [torch.randn_like(param.detach()) for param in self.params]
        self.grads = [torch.randn_like(param.detach()) for param in self.params]
        self.step = self._ours(name) if name in ("native", "reference") else self._theirs(name)

    def _ours(self, name: Literal["native", "reference"]) -> Callable[[], object]:
        momenta = [torch.zeros_like(grad) for grad in self.grads]
        twins = [Twin(index, twin, KEEP) for index, twin in enumerate(self.twins)]
        return lambda: sgd_update(self.params, self.grads, momenta, twins, **RULE, implementation=name)

    def _theirs(self, name: str) -> Callable[[], object]:
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        optimizer = torch.optim.SGD(
            self.params,
            RULE["learning_rate"],
            RULE["momentum"],
            0,
            RULE["weight_decay"],
            True,
            **{name: True},
        )
        data = [param.detach() for param in self.params]

        def step() -> None:
            torch._foreach_lerp_(self.twins, data, 1 - KEEP)  # pyright: ignore[reportPrivateImportUsage]
            optimizer.step()

        return step

    def results(self) -> list[Tensor]:
        return [*(param.detach() for param in self.params), *self.twins]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(device: str) -> list[Tensor]:
    """The reference's parameters and twins after two steps."""
    judge = Contender("reference", device)
    judge.step()
    judge.step()
    return judge.results()


@pytest.fixture(scope="module")
def bandwidth(device: str) -> float:
    """Bytes per second, read and written, of adding 512 MB to as much: the median of ten."""
    source, target = (torch.ones(2**27, device=device) for _ in range(2))
    seconds = []
    for _ in range(12):
        wait(device)
        start = time.perf_counter()
        target.add_(source)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 3 * source.nbytes / statistics.median(seconds[2:])


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("name", ["native", "fused", "foreach", "reference"])
def test_resnet50(name: str, device: str, expected: list[Tensor], bandwidth: float, benchmark, capsys) -> None:
    contender = Contender(name, device)
    try:
        contender.step()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    contender.step()
    for result, right in zip(contender.results(), expected, strict=True):
        if not torch.allclose(result, right, rtol=1e-5, atol=1e-6):
            pytest.fail(f"{name} is wrong by up to {(result - right).abs().max():.1e}: no time for it")

    def once() -> None:
        contender.step()
        wait(device)

    benchmark.pedantic(once, rounds=20, warmup_rounds=3)
    size = BYTES_PER_PARAMETER * sum(param.numel() for param in contender.params)
    median = benchmark.stats.stats.median
    share = size / median / bandwidth
    benchmark.extra_info.update(bytes=size, bandwidth=bandwidth, share=share)
    with capsys.disabled():
        print(
            f"\n{name} on {device}, {torch.get_num_threads()} threads: {median * 1e3:.2f} ms for "
            f"{size / 1e6:.0f} MB, {share:.0%} of the bandwidth of {bandwidth / 1e9:.1f} GB/s"
        )
