"""Every Triton operator at ResNet-50's shapes: fused, plain PyTorch, and torch.compile of it, with the floor of each.

    pytest benchmarks/micro/test_operators.py

An operator gets no row unless its tests passed in this run and its results at this very size are the reference's. Rows
exist on a GPU alone: the interpreter's times would say nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.micro.cases import CASES
from benchmarks.micro.harness import PHASES, TOLERANCE, Case, Draw, Machine, Work, clock, runner
from mlaan_kernels.choice import using

if not torch.cuda.is_available():
    pytest.skip("Triton's operators are timed on a GPU alone", allow_module_level=True)

DEVICE = torch.device("cuda")
SETS, ROUNDS, CALLS = 3, 20, 10


class Prepared(NamedTuple):
    """A form of an operator, ready to run on several sets of inputs."""

    case: Case
    contender: str
    works: Sequence[Work]


PAIRS = [(case, contender) for case in CASES for contender in case.contenders]
PAIRS.sort(key=lambda pair: pair[1] == "compiled")  # last, where time runs out: compiling takes more than all else


@pytest.fixture(scope="module", params=PAIRS, ids=[f"cuda-{c.operator}-{c.shape}-{name}" for c, name in PAIRS])
def prepared(
    request: pytest.FixtureRequest, in_time: Callable[[], None], admit: Callable[[str, str], None]
) -> Iterator[Prepared]:
    """Gate and check of one form."""
    case, contender = request.param
    in_time()
    admit(case.operator, DEVICE.type)
    with using("triton"):
        sets = [case.inputs(Draw(DEVICE, seed)) for seed in range(SETS)]
        if contender in ("fused", "compiled") and (gap := case.gap(contender, sets[0])) > TOLERANCE:
            pytest.fail(f"refused: {contender} is {gap:.1e} off the reference at {case.shape}", pytrace=False)
        yield Prepared(case, contender, [case.work(contender, inputs) for inputs in sets])
    torch.cuda.empty_cache()


@pytest.mark.benchmark(timer=partial(clock, DEVICE.type))
@pytest.mark.parametrize("phase", PHASES)
def test_operator(
    phase: str,
    prepared: Prepared,
    machine: Callable[[str], Machine],
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, contender, works = prepared
    if phase not in case.bytes:
        pytest.skip(f"{case.operator} has no {phase} by itself")
    device = machine(DEVICE.type)
    size, flops = case.bytes[phase], case.flops.get(phase, 0)
    with using("triton"):
        benchmark.pedantic(runner(works, phase), rounds=ROUNDS, iterations=CALLS, warmup_rounds=2)
    seconds, floor = benchmark.stats.stats.median, device.floor(size, flops)
    benchmark.extra_info.update(
        operator=case.operator,
        contender=contender,
        phase=phase,
        shape=case.shape,
        dtype="bfloat16",
        bytes=size,
        flops=flops,
        bandwidth=device.bandwidth,
        floor_ms=1e3 * floor,
        share=floor / seconds,
    )
    with capsys.disabled():
        print(
            f"\n{case.operator} {case.shape} {phase} {contender}: {1e6 * seconds:.0f} us; {size / 1e6:.1f} MB, floor "
            f"{1e6 * floor:.0f} us at {device.bandwidth / 1e12:.2f} TB/s: {floor / seconds:.0%} of the floor's speed"
        )
