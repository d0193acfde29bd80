"""The layout's promises."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_source_roots_are_no_packages():
    """A top-level package `kernels` would shadow another distribution, and `engine` says nothing."""
    for root in ("engine", "kernels"):
        assert not (ROOT / root / "__init__.py").exists()
        assert [p.name for p in (ROOT / root).iterdir() if p.is_dir() and (p / "__init__.py").exists()] == [
            {"engine": "mlaan", "kernels": "mlaan_kernels"}[root]
        ]


def test_nothing_optional_is_imported_with_the_package():
    code = "import sys, mlaan; print([m for m in ('tensorboard', 'matplotlib', 'rich', 'sklearn') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_versions_agree():
    import tomllib

    import mlaan

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == mlaan.__version__


def test_the_written_out_default_is_the_default():
    from mlaan.config import Config, load

    assert load(Config, ROOT / "configs/quick/digits.toml", []) == load(Config, None, [])
