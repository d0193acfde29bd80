"""sgd_update on ResNet-50's parameters, one EMA twin each, against what PyTorch offers for the same work.

    pytest benchmarks/micro/test_sgd_update.py

There is no row unless the operator's tests pass in the same run, and every form is first checked against the reference
at this very size; a wrong result is a failure, never a time. The floor is the row's bytes (README of the operator) over
the bandwidth that `harness.Machine` measures.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor

from benchmarks.micro.harness import Machine, clock
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


@pytest.mark.parametrize("name", ["native", "fused", "foreach", "reference"])
def test_resnet50(
    name: str,
    device: str,
    expected: list[Tensor],
    admit: Callable[[str, str], None],
    machine: Callable[[str], Machine],
    benchmark,
    capsys,
) -> None:
    admit("sgd_update", device)
    contender = Contender(name, device)
    try:
        contender.step()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    contender.step()
    for result, right in zip(contender.results(), expected, strict=True):
        if not torch.allclose(result, right, rtol=1e-5, atol=1e-6):
            pytest.fail(f"{name} is wrong by up to {(result - right).abs().max():.1e}: no time for it")
    bandwidth = machine(device).bandwidth
    benchmark._timer = partial(clock, device)  # the device is known only now
    benchmark.pedantic(contender.step, rounds=20, warmup_rounds=3)
    size = BYTES_PER_PARAMETER * sum(param.numel() for param in contender.params)
    median = benchmark.stats.stats.median
    share = size / median / bandwidth
    benchmark.extra_info.update(operator="sgd_update", contender=name, bytes=size, bandwidth=bandwidth, share=share)
    with capsys.disabled():
        print(
            f"\n{name} on {device}, {torch.get_num_threads()} threads: {median * 1e3:.2f} ms for "
            f"{size / 1e6:.0f} MB, {share:.0%} of the bandwidth of {bandwidth / 1e9:.1f} GB/s"
        )
