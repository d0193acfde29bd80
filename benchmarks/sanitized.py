"""Every kernel once on small shapes, forward and backward: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m benchmarks.sanitized

By itself it also compares with plain PyTorch. Needs a GPU.
"""

import sys

import torch

from benchmarks.micro.cases import SMALL
from benchmarks.micro.harness import TOLERANCE, Draw
from mlaan_kernels.choice import using


def main() -> int:
    """Returns the exit code: 1 if a result is wrong."""
    good = True
    with using("triton"):
        for case in SMALL:
            gap = case.gap("fused", case.inputs(Draw(torch.device("cuda"), 0)))
            print(f"{case.operator} {case.shape}: {gap:.1e} off the reference", flush=True)
            good &= gap < TOLERANCE
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
