"""The layout's promises."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlaan
from mlaan.cli.settings import load_config

ROOT = Path(__file__).parents[1]


def test_source_roots_are_no_packages():
    """A top-level package `kernels` would shadow another distribution, and `engine` says nothing."""
    for root in ("engine", "kernels"):
        assert not (ROOT / root / "__init__.py").exists()
        assert [p.name for p in (ROOT / root).iterdir() if p.is_dir() and (p / "__init__.py").exists()] == [
            {"engine": "mlaan", "kernels": "mlaan_kernels"}[root]
        ]


def test_nothing_optional_is_imported_with_the_package():
    code = "import sys, mlaan; mlaan.Engine; optional = ('tensorboard', 'matplotlib', 'rich', 'sklearn'); "
    code += "print([m for m in optional if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_help_does_not_wait_for_torch():
    code = "import sys; sys.argv[1:] = ['--version']; import mlaan.cli; "
    code += "import contextlib\nwith contextlib.suppress(SystemExit): mlaan.cli.main()\nprint('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.splitlines() == [f"mlaan {mlaan.__version__}", "False"]


def test_every_name_of_the_package_is_there():
    assert all(getattr(mlaan, name) is not None for name in mlaan.__all__)
    with pytest.raises(AttributeError, match="module 'mlaan' has no attribute 'engin'"):
        mlaan.engin  # noqa: B018


def test_versions_agree():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == mlaan.__version__


def test_the_written_out_default_is_the_default():
    assert load_config(ROOT / "configs/quick/digits.toml", []) == load_config(None, [])
