"""The wheel: what it holds, and that it works where neither the sources nor the editable install are."""

import fcntl
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mlaan_kernels import library

ROOT = Path(__file__).parents[2]
PROBE = """
import json, torch, mlaan, mlaan_kernels
from mlaan_kernels.library import status
from mlaan_kernels.sgd_update import sgd_update
param = torch.ones(3)
rule = dict(learning_rate=0.5, momentum=0.0, nesterov=False, weight_decay=0.0)
sgd_update([param], [torch.ones(3)], [], [], **rule, implementation="native")
print(json.dumps([mlaan.__path__[0], mlaan_kernels.__file__, [s.state for s in status()], param.tolist()]))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, native: None) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    with (ROOT / "setup.py").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test workers share one build folder
        run(*pip, "wheel", ROOT, "--no-build-isolation", "--no-deps", "-w", folder, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_holds_the_packages_the_libraries_and_nothing_else(wheel: Path) -> None:
    assert re.fullmatch(r"mlaan-[\w.]+-py3-none-(?!any)\w+\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT / root)) for root in ("engine", "kernels") for path in (ROOT / root).rglob("*.py")
    }
    libraries = {name for name in names if name.startswith("mlaan_kernels/lib/")}
    assert libraries >= {"mlaan_kernels/lib/libmlaan_cpu.so", "mlaan_kernels/lib/build.json"}
    if library.status()[1].state == "loaded":
        assert "mlaan_kernels/lib/libmlaan_cuda.so" in libraries
    assert {name for name in names if name.endswith(".py")} == expected
    others = {name for name in names - libraries if not name.endswith(".py")}
    assert all(name.split("/")[0].endswith(".dist-info") or name.endswith("/py.typed") for name in others), others


def test_holds_no_path_of_the_machine_that_built_it(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        assert str(ROOT).encode() not in archive.read(name), name


def test_works_installed_elsewhere(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", wheel, "--no-deps", "--target", target, cwd=elsewhere)
    output = run(sys.executable, "-c", PROBE, cwd=elsewhere, PYTHONPATH=str(target))
    expected = [str(target / "mlaan"), str(target / "mlaan_kernels" / "__init__.py")]
    mlaan, kernels, states, param = json.loads(output)
    assert [mlaan, kernels] == expected
    assert states == [entry.state for entry in library.status()]
    assert param == [0.5, 0.5, 0.5]
