"""Builds the native operators with CMake; everything else about the package is in pyproject.toml.

Without a C++ compiler, CMake, ninja or torch the package installs without native operators and says so,
here and in `mlaan_kernels.library.status()`; a compile error is an error. MLAAN_NATIVE=0 leaves them out.
"""

import hashlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
SOURCES = ["CMakeLists.txt", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir())]
LIBRARIES = Path("mlaan_kernels", "lib")


def torch_folder() -> Path | None:
    """Where torch is, without the seconds that importing it takes; None where it is not installed."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def build_folder() -> Path:
    """One folder per Python and installed torch, so that no environment meets another's leftovers."""
    torch = torch_folder()
    version = runpy.run_path(str(torch / "version.py"))["__version__"] if torch else "none"
    place = hashlib.sha256(str(torch).encode()).hexdigest()[:8]
    return ROOT / "build" / f"{sys.implementation.cache_tag}-torch{version}-{place}"


def find_tool(*names: str) -> str | None:
    """The first of these programs in the environment's own scripts folder, else on the PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def obstacle() -> str | None:
    """Why no native operator can be built here, and what to do about it; None if one can."""
    if os.environ.get("MLAAN_NATIVE") == "0":
        return "left out at installation by MLAAN_NATIVE=0: install again without it"
    again = "then run pip install --no-build-isolation . again in the source folder"
    if torch_folder() is None:
        return f"torch was not there at installation: pip install torch, {again}"
    if not (os.environ.get("CXX") or find_tool("c++", "g++", "clang++")):
        return f"no C++ compiler was there at installation: install g++ or clang++, {again}"
    missing = [name for name in ("cmake", "ninja") if not find_tool(name)]
    if missing:
        return f"{' and '.join(missing)} not there at installation: pip install {' '.join(missing)}, {again}"
    return None


class BuildNative(build_ext):
    """Runs CMake and puts the libraries beside `mlaan_kernels/library.py`."""

    def run(self) -> None:
        target = self._package_root() / LIBRARIES
        target.mkdir(parents=True, exist_ok=True)
        why = obstacle()
        files = {"build.json": json.dumps({"no_cpu": why}).encode()} if why else self._compile()
        for stale in set(target.iterdir()) - {target / name for name in files}:
            stale.unlink()
        for name, content in files.items():
            self._put(content, target / name)
        facts = json.loads(files["build.json"])
        for reason in filter(None, (facts.get("no_cpu"), facts.get("no_cuda"))):
            which = "CPU or CUDA" if why else "CUDA"
            print(f"mlaan: built no native {which} operators: {reason}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (self._package_root() / LIBRARIES).glob("*")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return SOURCES

    def _package_root(self) -> Path:
        return ROOT / "kernels" if self.inplace else Path(self.build_lib)

    def _compile(self) -> dict[str, bytes]:
        folder = build_folder() / "cmake"
        cmake = str(find_tool("cmake"))
        tools = [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
        subprocess.run([cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *tools], check=True)
        subprocess.run([cmake, "--build", folder], check=True)
        return {path.name: path.read_bytes() for path in (folder / "lib").iterdir()}

    @staticmethod
    def _put(content: bytes, path: Path) -> None:
        """Replaces the file in one step, and only if it changes: a running process may have it loaded."""
        if path.exists() and path.read_bytes() == content:
            return
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)


class BuildPython(build_py):
    """Starts a wheel from an empty folder: setuptools would pack whatever an earlier build left there."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """The libraries hold no Python symbols: the wheel depends on the platform and on nothing else."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


ROOTS = {"mlaan": "engine", "mlaan_kernels": "kernels"}

setup(
    packages=[package for name, root in ROOTS.items() for package in find_packages(root, include=[name, f"{name}.*"])],
    package_dir={name: f"{root}/{name}" for name, root in ROOTS.items()},
    package_data={name: ["py.typed"] for name in ROOTS},
    include_package_data=False,
    ext_modules=[Extension("mlaan_kernels.lib", SOURCES)],
    options={"build": {"build_base": str((build_folder() / "python").relative_to(ROOT))}},
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython, "bdist_wheel": Wheel},
)
