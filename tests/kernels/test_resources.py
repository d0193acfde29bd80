"""docs/kernels.md is what the kernels compile to, and what must not ship is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.launched import differences

from mlaan_kernels.launching import Variant

ROOT = Path(__file__).parents[2]

# Kernels of a package of their own: each has one fault, but for the first.
PLANTED = {
    "good": """
@triton.jit
def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, at < n), at < n)

def variants():
    kinds = {"x_ptr": "*bf16:16", "y_ptr": "*bf16:16", "n": "i32:16"}
    return [Variant(f"good copy {block}", kernel, kinds, {"BLOCK": block}) for block in (512, 1024)]
""",
    "exact": """
@triton.jit
def kernel(a_ptr, b_ptr, c_ptr, PRECISION: tl.constexpr):
    rows, columns, inner = tl.arange(0, 64)[:, None], tl.arange(0, 16)[None, :], tl.arange(0, 16)
    a, b = tl.load(a_ptr + rows * 16 + inner[None, :]), tl.load(b_ptr + inner[:, None] * 16 + columns)
    tl.store(c_ptr + rows * 16 + columns, tl.dot(a, b, input_precision=PRECISION).to(c_ptr.dtype.element_ty))

def of(precision, kind):
    return Variant(f"exact product {kind} {precision}", kernel, dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), kind),
                   {"PRECISION": precision}, matrix=True)

def variants():
    return [of("tf32", "*fp32:16"), of("ieee", "*fp32:16"), of("ieee", "*bf16:16")]
""",
    "spilling": """
@triton.jit
def kernel(x_ptr, y_ptr, n):
    at = tl.arange(0, 128)[:, None] * 128 + tl.arange(0, 128)[None, :]
    first = tl.load(x_ptr + at).to(tl.float32)
    second = tl.load(x_ptr + at + n).to(tl.float32)
    for i in range(n):
        first, second = first * second + i, second * 3 - first
    tl.store(y_ptr + at, first * second)

def variants():
    return [Variant("spilling loop", kernel, {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}, num_warps=4)]
""",
    "greedy": """
@triton.jit
def kernel(a_ptr, b_ptr, c_ptr, n):
    at = tl.arange(0, 128)[:, None] * 128 + tl.arange(0, 128)[None, :]
    sum = tl.zeros((128, 128), tl.float32)
    for k in range(n):
        sum = tl.dot(tl.load(a_ptr + at + k * 16384), tl.load(b_ptr + at + k * 16384), sum)
    tl.store(c_ptr + at, sum)

def variants():
    kinds = {"a_ptr": "*bf16:16", "b_ptr": "*bf16:16", "c_ptr": "*fp32:16", "n": "i32"}
    return [Variant("greedy product", kernel, kinds, num_warps=8, num_stages=6, matrix=True)]
""",
    "slow": """
@triton.jit
def kernel(a_ptr, b_ptr, c_ptr):
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))

def variants():
    kinds = {"a_ptr": "*bf16:16", "b_ptr": "*bf16:16", "c_ptr": "*fp32:16"}
    return [Variant("slow product", kernel, kinds, matrix=True)]
""",
    "forgetful": """
@triton.jit
def kernel(x_ptr, n):
    tl.store(x_ptr, n)

def variants():
    return [Variant("forgetful argument", kernel, {"x_ptr": "*fp32"})]
""",
    "unfinished": "from nowhere import kernel",
    "empty": "def variants():\n    return []",
}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the planted package, its page and the cache are."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted").mkdir()
    (folder / "planted" / "__init__.py").touch()
    return folder


def plant(folder: Path, *names: str) -> None:
    """The package has these operators and no others."""
    for name, source in PLANTED.items():
        place = folder / "planted" / name
        place.mkdir(exist_ok=True)
        (place / "__init__.py").touch()
        (place / "triton.py").unlink(missing_ok=True)
        if name in names:
            imports = "import triton\nimport triton.language as tl\nfrom mlaan_kernels.launching import Variant\n"
            (place / "triton.py").write_text(imports + source)


def compiling() -> dict[str, str]:
    """The environment without the interpreter."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def resources(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command without the interpreter, on the planted package if `folder` is given."""
    environment = compiling()
    command = [sys.executable, "-m", "benchmarks.resources", "--processes", "1", *arguments]
    if folder is not None:
        environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command += ["--package", "planted", "--page", str(folder / "page.md"), "--cache", str(folder / "cache")]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_page_is_what_the_sources_give():
    done = resources("--check", "--sample", "2")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_row_of_the_page_is_what_compiles():
    done = resources("--check")
    assert done.returncode == 0, done.stderr


def test_what_is_launched_is_listed():
    command = [sys.executable, "-m", "benchmarks.launched"]
    done = subprocess.run(command, cwd=ROOT, env=compiling(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_launch_that_is_not_listed_is_seen():
    class Kernel:
        arg_names = ("x_ptr", "n", "one", "BLOCK")

    signature = {"x_ptr": "*bf16:16", "n": "i32:16"}
    variant = Variant("copy", Kernel, signature, {"one": 1, "BLOCK": 64}, num_warps=4, num_stages=3)
    launch = {"x_ptr": torch.ones(1, dtype=torch.bfloat16), "n": 7, "one": 1, "BLOCK": 64}
    launch |= {"num_warps": 4, "num_stages": 3}
    assert differences(variant, launch) == []
    for other in ({"x_ptr": torch.ones(1)}, {"x_ptr": None}, {"n": 7.0}, {"BLOCK": 32}, {"num_stages": 2}):
        assert len(differences(variant, launch | other)) == 1, other


def test_every_fault_is_found_and_named(compiled):
    plant(compiled, *PLANTED)
    done = resources("--write", folder=compiled)
    assert done.returncode == 1
    faults = done.stderr.splitlines()
    for words in (
        "spilling loop: sm_80: spills ",
        "spilling loop: sm_90: spills ",
        "greedy product: sm_80: 327,680 bytes of shared memory, and there are 166,912",
        "greedy product: sm_90: 393,216 bytes of shared memory, and there are 232,448",
        "slow product: sm_90: multiplies without wgmma",
        "forgetful argument: does not compile for sm_80: ValueError: signature and constants must list each argument "
        "once; look at n",
        "unfinished: its triton.py gives no variants: ModuleNotFoundError: No module named 'nowhere'",
        "empty: its triton.py gives no variants: ValueError: variants() is empty",
    ):
        assert sum(fault.startswith(words) for fault in faults) == 1, (words, done.stderr)
    assert not [fault for fault in faults if fault.startswith(("good", "exact"))]
    assert not (compiled / "page.md").exists(), "a page with faults was written"


def test_a_page_of_other_sources_is_found(compiled):
    plant(compiled, "good", "exact")
    assert resources("--write", folder=compiled).returncode == 0
    page = (compiled / "page.md").read_text()
    assert resources("--check", folder=compiled).returncode == 0
    assert resources("--check", "--sample", "1", folder=compiled).returncode == 0
    assert [line.split("|")[-2].strip() for line in page.splitlines() if "product" in line and "|" in line] == [
        "yes",
        "exact",
        "yes",
    ]

    (compiled / "page.md").write_text(page.replace("copy 512 | 4, 3 | ", "copy 512 | 4, 3 | 1"))
    done = resources("--check", folder=compiled)
    assert (done.returncode, "make kernels" in done.stderr, "copy 512" in done.stderr) == (1, True, True)

    (compiled / "page.md").write_text(page)
    source = compiled / "planted" / "good" / "triton.py"
    source.write_text(source.read_text().replace("at < n), at < n)", "at < n) + 1, at < n)"))
    done = resources("--check", "--sample", "1", folder=compiled)
    assert (done.returncode, "sources" in done.stderr) == (1, True)

    plant(compiled, "good")
    done = resources("--check", "--sample", "1", folder=compiled)
    assert (done.returncode, "-## exact" in done.stderr) == (1, True)


def test_what_is_cached_is_not_compiled_again(compiled):
    plant(compiled, "good")
    resources(folder=compiled)
    done = resources(folder=compiled)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    command = [sys.executable, "-m", "benchmarks.resources"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "unset it" in done.stderr) == (2, True)
