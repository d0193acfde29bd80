"""What compute-sanitizer looks at, without it: on a CPU the forms are the reference's."""

from benchmarks import sanitized
from mlaan_kernels import launching


def test_kernels_take_their_first_settings(monkeypatch):
    monkeypatch.setattr(launching, "autotuned", lambda configs, key: (list(configs), list(key)))
    sanitized.take_first_settings()
    assert launching.autotuned(["first", "second"], ["size"]) == (["first"], ["size"])


def test_every_operator_is_run_and_a_wrong_one_fails(monkeypatch, capsys):
    from benchmarks.micro.cases import SMALL

    monkeypatch.setattr(launching, "autotuned", launching.autotuned)
    gaps = {id(case): 0.0 for case in SMALL}
    monkeypatch.setattr(type(SMALL[0]), "gap", lambda self, contender, inputs: gaps[id(self)])
    assert sanitized.main("cpu") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(SMALL)
    gaps[id(SMALL[2])] = 1.0
    assert sanitized.main("cpu") == 1
