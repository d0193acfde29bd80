"""The README's code runs as printed, and its commands exist."""

import re
from pathlib import Path

from mlaan.cli import main

README_FILE = Path(__file__).parents[2] / "README.md"
README = README_FILE.read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "state.pt").exists()
    out = capsys.readouterr().out
    assert "3.classifier" in out
    assert "Evaluation(loss=" in out


def test_the_plan_commands_run(capsys, tmp_path, monkeypatch):
    lines = re.findall(r"^mlaan (plan .*?)\s*(?:#.*)?$", README.replace("\\\n", " "), re.MULTILINE)
    assert len(lines) == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(README_FILE.parent / "configs")
    for line in lines[:3]:  # the last is like the one before
        assert main(line.split()) == 0
        assert "end-to-end" in capsys.readouterr().out.lower()
    assert (tmp_path / "plan.toml").exists()


def test_every_setting_named_exists():
    """--section.key in the shell examples are keys that the parser knows."""
    import mlaan.data
    import mlaan.learning  # noqa: F401
    from mlaan.config import Config, describe

    known = {setting.key for setting in describe(Config)}
    named = set(re.findall(r"--(\w+\.\w+)", README))
    assert named
    assert named <= known
