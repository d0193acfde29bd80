"""`mlaan doctor --measure`: this machine's figures, kept for `mlaan plan`."""

from mlaan.cli import main
from mlaan.plan.machine import MACHINES, Machine


def measured(monkeypatch, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr("mlaan.cli.doctor.measure_machine", lambda device: MACHINES["cpu"])
    return main(["doctor", "--measure"])


def test_what_is_measured_is_printed_and_kept(tmp_path, monkeypatch, capsys):
    assert measured(monkeypatch, tmp_path) == 0
    kept = tmp_path / "mlaan" / "machine.json"
    assert Machine.from_json(kept.read_text()) == MACHINES["cpu"]
    said = capsys.readouterr().out
    assert "400 GFLOP/s in float32" in said
    assert "40.0 GB/s" in said
    assert str(kept) in said
    assert main(["plan", "--method.preset", "light"]) == 0
    assert f"eight CPU cores (measured here: {kept})" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlaan").write_text("a file")
    assert measured(monkeypatch, tmp_path) == 2
    assert "set XDG_CACHE_HOME" in capsys.readouterr().err
