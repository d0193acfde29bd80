"""Loads the compiled operators on first use, and can say what is there, what is missing and how to get it.

`setup.py` puts `libmlaan_cpu.so`, `libmlaan_cuda.so` and `build.json` (what was built, and why something was
not) into `lib/` beside this file. The libraries hold no Python symbols and use only torch's stable C
interface, so one build serves every Python and every torch from 2.10 on.

Environment: MLAAN_NATIVE=0 makes every operator use its reference.
"""

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Implementation = Literal["auto", "reference", "native"]

FOLDER = Path(__file__).parent / "lib"
BUILD = "build them: pip install --no-build-isolation . in the source folder (needs a C++ compiler and ninja)"
_warned = False


class NativeUnavailableError(RuntimeError):
    """The native form of an operator was asked for by name and cannot run; the message says every cause."""


class Status(NamedTuple):
    """One library: its name, its state, and for a person what is behind that state and how to change it."""

    name: str
    state: Literal["loaded", "missing", "failed", "off"]
    detail: str
    architectures: tuple[str, ...] = ()


def status() -> list[Status]:
    """The state of each native library; loads them if that has not happened yet.

    Returns:
        One `Status` for "cpu" and one for "cuda". "missing": never built, "failed": built but did not load,
        "off": switched off by MLAAN_NATIVE=0.
    """
    if _switched_off():
        return [Status(name, "off", "MLAAN_NATIVE=0 is set: unset it") for name in ("cpu", "cuda")]
    return list(_load())


def use_native(operator: str, implementation: Implementation, device: torch.device) -> bool:
    """Decides between the native form (True) and the reference (False) for tensors on `device`.

    "auto" takes the native form where it can run; where it cannot, the first such case of the process warns
    (RuntimeWarning) with the causes. Nobody is warned about what they asked for (MLAAN_NATIVE=0), nor about
    meta tensors, which hold no data to compute with.

    Raises:
        NativeUnavailableError: `implementation` is "native" and the native form cannot run on `device`.
        ValueError: `implementation` is none of the three words.
    """
    global _warned
    if implementation == "reference":
        return False
    if implementation not in ("auto", "native"):
        raise ValueError(f"implementation is {implementation!r}: it is 'auto', 'reference' or 'native'")
    obstacle = _obstacle(device)
    if obstacle is None:
        return True
    if implementation == "native":
        raise NativeUnavailableError(f"the native {operator} cannot run on {device}: {obstacle}")
    if not (_warned or _switched_off() or device.type == "meta"):
        _warned = True
        warnings.warn(
            f"operators such as {operator} run their slower PyTorch reference on {device.type}: {obstacle}",
            RuntimeWarning,
            stacklevel=4,  # the caller of the operator
        )
    return False


def runs_on(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Whether code built for `architectures` runs on a GPU of this compute capability (major, minor).

    "80-real" is machine code for 8.x with x >= 0, "90a-real" for exactly 9.0, "90-virtual" is PTX, which the
    driver compiles for 9.0 and everything newer.
    """
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        built = divmod(int(number.rstrip("af")), 10)
        if number[-1] in "af":
            fits = capability == built
        elif kind == "virtual":
            fits = capability >= built
        else:
            fits = capability[0] == built[0] and capability >= built
        if fits:
            return True
    return False


def _switched_off() -> bool:
    return os.environ.get("MLAAN_NATIVE") == "0"


def _obstacle(device: torch.device) -> str | None:
    """What keeps native operators from running on this device; None if nothing does."""
    if _switched_off():
        return "MLAAN_NATIVE=0 is set: unset it"
    cpu, cuda = _load()
    if device.type == "cpu":
        return None if cpu.state == "loaded" else cpu.detail
    if device.type != "cuda":
        return f"there is no native library for the device type {device.type!r}: use cpu or cuda"
    if cuda.state != "loaded":
        return cuda.detail
    capability = _capability(device)
    if not runs_on(capability, cuda.architectures):
        built = ", ".join(cuda.architectures)
        return f"compute capability {capability} is not among {built}: add it to CMakeLists.txt and rebuild"
    return None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _load() -> tuple[Status, Status]:
    built = json.loads(text) if (text := _read(FOLDER / "build.json")) else {}
    cpu = _load_one("cpu", built.get("no_cpu", ""), built)
    if cpu.state != "loaded":
        return cpu, cpu._replace(name="cuda", detail=f"it needs the cpu library; {cpu.detail}")
    if torch.version.cuda is None:
        detail = f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch"
        return cpu, Status("cuda", "missing", detail)
    return cpu, _load_one("cuda", built.get("no_cuda", ""), built)


def _load_one(name: str, why_not_built: str, built: dict[str, str]) -> Status:
    path = FOLDER / f"libmlaan_{name}.so"
    if not path.exists():
        return Status(name, "missing", why_not_built or f"{path} does not exist; {BUILD}")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        causes = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(str(cause))
            cause = cause.__cause__ or cause.__context__
        versions = f"built with torch {built.get('torch', 'unknown')}, running torch {torch.__version__}"
        return Status(name, "failed", f"{'; because: '.join(causes)} ({versions}); {BUILD}")
    if name == "cpu":
        return Status(name, "loaded", str(path))
    architectures = tuple(built.get("architectures", "").split(";"))
    return Status(name, "loaded", f"{path}, for {', '.join(architectures)}", architectures)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
