"""Every kernel once on small shapes, forward and backward: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m benchmarks.sanitized

By itself it also compares with plain PyTorch. Kernels with several settings run in their first one: to choose by time
would take minutes under the tool. Needs a GPU.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.micro.harness import TOLERANCE, Draw
from mlaan_kernels import launching
from mlaan_kernels.choice import using


def take_first_settings() -> None:
    """From now on operators that are imported choose nothing."""
    choosing = launching.autotuned

    def autotuned(configs: Sequence[Any], key: Sequence[str]) -> Any:
        return choosing(configs[:1], key)

    launching.autotuned = autotuned


def main(device: str = "cuda") -> int:
    """Returns the exit code: 1 if a result is wrong."""
    take_first_settings()
    from benchmarks.micro.cases import SMALL

    good = True
    with using("triton"):
        for case in SMALL:
            gap = case.gap("fused", case.inputs(Draw(torch.device(device), 0)))
            print(f"{case.operator} {case.shape}: {gap:.1e} off the reference", flush=True)
            good &= gap < TOLERANCE
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
