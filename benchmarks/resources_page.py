"""docs/kernels.md: the resource table, and how to read it."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.offline import SHARED_LIMITS, Resources, needs_wgmma

if TYPE_CHECKING:
    from mlaan_kernels.launching import Variant


class Row(NamedTuple):
    """One variant, and what it takes by compute capability."""

    variant: "Variant"
    found: dict[int, Resources]

    def text(self, operator: str) -> str:
        """A line of the operator's table."""
        found = self.found.values()
        cells = [
            self.variant.kernel.__name__,
            self.variant.name.removeprefix(operator).strip(),
            f"{self.variant.num_warps}, {self.variant.num_stages}",
            " / ".join(str(resources.registers) for resources in found),
            " / ".join(f"{resources.shared:,}" for resources in found),
            " / ".join(str(resources.spill) for resources in found),
            _wgmma(self.variant, self.found),
        ]
        return f"| {' | '.join(cells)} |"


class Section(NamedTuple):
    """One operator: its variants, or some of them, and the hash of them all."""

    operator: str
    digest: str
    rows: list[Row]

    def text(self) -> str:
        """Its part of the page."""
        lines = [
            f"## {self.operator}",
            "",
            f"<!-- sources {self.digest} -->",
            "",
            "| kernel | variant | warps, stages | registers | shared | spill | wgmma |",
            "|---|---|---|---|---|---|---|",
            *(row.text(self.operator) for row in self.rows),
            "",
        ]
        return "\n".join(lines)


PREAMBLE = """# Kernels

What every Triton kernel of the engine takes of a GPU, in each variant that may be launched. No GPU was needed for it:
`make kernels` compiles all variants with Triton {triton} for compute capability 8.0 (A100) and 9.0 (H100), writes this
page, and fails if a variant spills, asks for more shared memory than there is, or misses wgmma. A test holds the page
to the sources, by a hash of each operator's variants and a sample that it compiles. Times are another matter:
`make gpu` measures them.

How to read a row; where two figures stand, the first is for sm_80 and the second for sm_90:

* **variant**: dtype, tile and flags as the operator's `triton.py` spells them; **warps** are of 32 threads, **stages**
  are tiles in flight.
* **registers** per thread. A multiprocessor has 65,536: registers x 32 x warps of them go to each block, so that 128
  registers leave room for 16 warps, of 64. Kernels that wait for memory want many warps; matrix kernels do with few.
* **shared** memory per block in bytes. A block can have {limits}; two blocks share a
  multiprocessor only if their sum is about that.
* **spill**: bytes per thread that did not fit into registers and travel through memory instead. It must be 0.
* **wgmma**: whether Hopper's matrix instructions are in the sm_90 code. Kernels whose time goes into products must have
  them; "exact" is a product of float32 in full precision, for which there is no such instruction, and "-" a kernel
  whose time goes into memory.
"""


def render(sections: Sequence[Section]) -> str:
    """The whole page."""
    import triton

    limits = " and ".join(f"{limit:,} on sm_{capability}" for capability, limit in SHARED_LIMITS.items())
    return "\n".join(
        [PREAMBLE.format(triton=triton.__version__, limits=limits), *(section.text() for section in sections)]
    )


def differences(page: str, sections: Sequence[Section], *, whole: bool) -> list[str]:
    """How the page differs from what was compiled; with sections that hold a sample of their rows, not `whole`."""
    there, wanted = page.splitlines(), render(sections).splitlines()
    if whole:
        return list(difflib.unified_diff(there, wanted, "committed", "compiled", lineterm="", n=0))
    operators = {line for line in there if line.startswith("## ")} - {f"## {section.operator}" for section in sections}
    return [f"+{line}" for line in wanted if line not in set(there)] + [f"-{line}" for line in sorted(operators)]


def _wgmma(variant: "Variant", found: Mapping[int, Resources]) -> str:
    if not variant.matrix:
        return "-"
    if not needs_wgmma(variant):
        return "exact"
    return "yes" if all(resources.wgmma for capability, resources in found.items() if capability >= 90) else "NO"
