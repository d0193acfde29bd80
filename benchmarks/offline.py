"""Compiles one variant of a Triton kernel for a GPU that need not be there, and judges what came out."""

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlaan_kernels.launching import Variant

SHARED_LIMITS = {80: 166_912, 90: 232_448}
"""Bytes of shared memory that one block can have, by compute capability."""


@dataclass(frozen=True)
class Resources:
    """What one variant takes on one target.

    Attributes:
        registers: per thread.
        shared: bytes per block.
        spill: bytes of stack and local memory per thread, where values go that the registers do not hold.
        wgmma: Hopper's matrix instructions are in the code.
    """

    registers: int
    shared: int
    spill: int
    wgmma: bool


def fingerprint(variant: "Variant", capability: int) -> str:
    """A hash of what the compiled code comes from: source and all it calls, types, constants, options, compiler."""
    import triton

    parts = (
        variant.kernel.cache_key,
        sorted(variant.signature.items()),
        sorted((name, repr(value)) for name, value in variant.constants.items()),
        (variant.num_warps, variant.num_stages, capability, triton.__version__),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def digest(fingerprints: Iterable[str]) -> str:
    """One short hash for many."""
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:16]


def compile_variant(variant: "Variant", capability: int) -> Resources:
    """Compile for one target.

    Raises:
        ValueError: the variant's lists do not have each argument of the kernel once.
        Exception: whatever Triton or its assembler say against the kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = variant.kernel.arg_names
    listed = [*variant.signature, *variant.constants]
    if sorted(listed) != sorted(arguments):
        wrong = sorted({name for name in {*listed, *arguments} if listed.count(name) != arguments.count(name)})
        raise ValueError(f"signature and constants must list each argument once; look at {', '.join(wrong)}")
    kinds = {name: variant.signature.get(name, "constexpr").partition(":") for name in arguments}
    multiples = {
        (position,): [["tt.divisibility", int(multiple)]]
        for position, (_, _, multiple) in enumerate(kinds.values())
        if multiple
    }
    compiled = triton.compile(
        ASTSource(
            variant.kernel, {name: kind for name, (kind, _, _) in kinds.items()}, dict(variant.constants), multiples
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    usage = _usage(compiled.asm["cubin"])
    return Resources(
        registers=usage["REG"],
        shared=compiled.metadata.shared,
        spill=usage["STACK"] + usage["LOCAL"],
        wgmma="wgmma.mma_async" in compiled.asm["ptx"],
    )


def needs_wgmma(variant: "Variant") -> bool:
    """Whether its products must be wgmma on Hopper: float32 ones that are to be exact have no such instruction."""
    halves = any(kind.startswith(("*bf16", "*fp16")) for kind in variant.signature.values())
    return variant.matrix and (halves or variant.constants.get("PRECISION") != "ieee")


def faults_of(variant: "Variant", found: Mapping[int, Resources]) -> list[str]:
    """What keeps the variant from shipping, a line for each fault."""
    faults = []
    for capability, resources in found.items():
        name, limit = f"{variant.name}: sm_{capability}", SHARED_LIMITS[capability]
        if resources.spill:
            faults.append(f"{name}: spills {resources.spill} bytes per thread; smaller tiles or more warps")
        if resources.shared > limit:
            faults.append(f"{name}: {resources.shared:,} bytes of shared memory, and there are {limit:,}")
        if capability >= 90 and needs_wgmma(variant) and not resources.wgmma:
            faults.append(f"{name}: multiplies without wgmma; tiles of 64 rows and a multiple of 4 warps have it")
    return faults


def _usage(cubin: bytes) -> dict[str, int]:
    """cuobjdump's figures of a cubin with one kernel, such as {"REG": 32, "STACK": 0, "LOCAL": 0}."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text[text.index("REG:") :])}
