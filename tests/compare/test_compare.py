"""`mlaan compare` on a tiny network: what is written and said, what cannot be measured, and a stop."""

import gc
import json
import signal
from pathlib import Path

import pytest
import torch

from mlaan.cli import main
from mlaan.cli.settings import load_config
from mlaan.compare import contenders, run
from mlaan.compare.candidates import Candidate, Refused, choose_methods, name_of
from mlaan.compare.contenders import EndToEnd
from mlaan.compare.ground import Ground
from mlaan.compare.measure import flops
from mlaan.compare.result import Comparison
from mlaan.compare.run import OUT_OF_MEMORY, Measurement
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.learning import DGL, MLAAN

SETTINGS = {
    "model.name": f"{Path(__file__).with_name('own_net.py')}:make",
    "data.name": "synthetic",
    "data.size": "12",
    "data.batch": "4",
    "train.device": "cpu",
}
WORDS = ["compare", *(word for key, value in SETTINGS.items() for word in (f"--{key}", value))]
DGL_ROWS = ["dgl (2 modules, lean)", "dgl (2 modules, full)"]
ROWS = ["end-to-end", "checkpointed", *DGL_ROWS]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One step for each turn, few segment counts, and no collection of garbage, which takes long in a test suite."""
    monkeypatch.setattr(run, "MOST_STEPS", 1)
    monkeypatch.setattr(contenders, "SEGMENTS_TRIED", (2,))
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def no_profiler(monkeypatch):
    """Peaks that are quick to take, and mean nothing."""
    for where in (run, contenders):
        monkeypatch.setattr(where, "step_peak", lambda made, batch: made.step(*batch) and 100)


def config(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, list((SETTINGS | changes).items()))


def measured():
    """A comparison of dgl in two modules, and what was said."""
    ground, said = Ground(config()), []
    found = Comparison({"rounds": 2}, ground.batch)
    measurement = Measurement(ground, found, 2, said.append)
    measurement.run(ground.candidates([DGL()], [2]))
    return found, said


def test_table_figures_and_picture(tmp_path, capsys):
    out = tmp_path / "there" / "out"
    words = ["--modules", "2,3,99", "--rounds", "2", "--out", str(out)]
    assert main([*WORDS, "--methods", "dgl,mlaan", "--method.preset", "light", *words]) == 0
    printed, said = capsys.readouterr()
    figures = json.loads((out / "compare.json").read_text())
    assert {"rows", "refused", "config", "machine", "verdict", "notes"} <= figures.keys()
    assert figures["finished"] is True
    assert figures["config"]["method"]["preset"] == "light"
    assert figures["machine"]["torch"] == torch.__version__
    rows = {row["label"]: row for row in figures["rows"]}
    families = [row["family"] for row in figures["rows"]]
    assert families == ["end-to-end", "checkpointed", *["dgl"] * 5, *["mlaan light"] * 3]  # reach 2 fills 2 modules
    for label, row in rows.items():
        assert len(row["seconds"]) == 2
        assert row["end_to_end_seconds"] == rows["end-to-end"]["seconds"]
        assert row["time_ratio"]["low"] <= row["time_ratio"]["median"] <= row["time_ratio"]["high"]
        assert row["memory_ratio"] == row["peak_bytes"] / rows["end-to-end"]["peak_bytes"]
        assert label in printed
    assert rows["end-to-end"]["time_ratio"] == {"low": 1, "median": 1, "high": 1}
    assert any(row["pareto"] for row in rows.values())
    assert rows["dgl (3 modules, lean)"]["parameters"] > rows["end-to-end"]["parameters"]
    assert [refused["label"] for refused in figures["refused"]] == ["dgl (99 modules)", "mlaan light (99 modules)"]
    assert "choose 1 to 4" in printed
    assert all(sentence in printed for sentence in figures["verdict"])
    assert "nothing about accuracy" in figures["verdict"][-1]
    assert "round 2/2 of 10 contenders" in said
    assert "memory 3/10: dgl (2 modules, lean), about " in said
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("moment", [signal.SIGINT, KeyboardInterrupt], ids=["asked", "at once"])
@pytest.mark.usefixtures("no_profiler")
def test_a_stop_keeps_what_was_measured(tmp_path, capsys, monkeypatch, moment):
    steps = []

    def step(self, *batch, _step=Engine.step):
        steps.append(1)
        if len(steps) == 7:  # two for each of two peaks, two for the first round
            if moment is KeyboardInterrupt:
                raise KeyboardInterrupt
            signal.raise_signal(moment)
        return _step(self, *batch)

    monkeypatch.setattr(Engine, "step", step)
    words = ["--modules", "2", "--methods", "dgl", "--rounds", "5", "--out", str(tmp_path), "--json"]
    assert main([*WORDS, *words]) == 130
    printed, said = capsys.readouterr()
    figures = json.loads((tmp_path / "compare.json").read_text())
    assert json.loads(printed) == figures
    assert figures["finished"] is False
    found = [(row["family"], len(row["seconds"])) for row in figures["rows"]]
    assert found == [("end-to-end", 1), ("checkpointed", 1), ("dgl", 1), ("dgl", 1)]
    assert "stopped: what was measured so far follows" in said


@pytest.mark.usefixtures("no_profiler")
def test_a_contender_without_memory_is_told_and_the_others_stay(monkeypatch):
    def peak(made, batch, _peak=run.step_peak):
        if isinstance(made, Engine) and made.plan.window == 2:
            raise torch.OutOfMemoryError("too much")
        return _peak(made, batch)

    monkeypatch.setattr(run, "step_peak", peak)
    found, said = measured()
    assert [row.candidate.label for row in found.timed()] == [*ROWS[:2], DGL_ROWS[0]]
    assert found.refused == [Refused(DGL_ROWS[1], OUT_OF_MEMORY)]
    assert f"  not measured: {OUT_OF_MEMORY}" in said


@pytest.mark.usefixtures("no_profiler")
def test_without_room_for_all_each_runs_beside_end_to_end(monkeypatch):
    monkeypatch.setattr(run, "free_on", lambda device: 0)
    found, said = measured()
    assert [(row.candidate.label, len(row.seconds), len(row.reference)) for row in found.rows] == [
        (label, 2, 2) for label in ROWS
    ]
    for label in ROWS[1:]:
        assert label in found.notes[0]
        assert any(f"round 2/2 of end-to-end and {label}" in line for line in said)
    assert found.rows[1].reference != found.rows[2].reference  # rounds of their own


@pytest.mark.usefixtures("no_profiler")
def test_a_crash_in_the_rounds_takes_only_its_own(monkeypatch):
    def step(self, *batch, _step=Engine.step):
        if self.plan.window == 2 and len(found_peaks) == len(ROWS):
            turns.append(self)
            if len(turns) > 1:
                raise RuntimeError("a kernel failed\nin many lines")
        return _step(self, *batch)

    found_peaks, turns = [], []
    monkeypatch.setattr(run, "step_peak", lambda made, batch: (made.step(*batch) and found_peaks.append(made)) or 100)
    monkeypatch.setattr(Engine, "step", step)
    found, _ = measured()
    assert {row.candidate.label: len(row.seconds) for row in found.rows} == {
        "end-to-end": 1,  # what the rounds of all together had got to
        "checkpointed": 2,
        DGL_ROWS[0]: 2,
        DGL_ROWS[1]: 0,
    }
    assert found.refused == [Refused(f"{DGL_ROWS[1]}: its time", "RuntimeError: a kernel failed")]
    assert "RuntimeError: a kernel failed" in found.notes[0]


def test_end_to_end_must_fit(monkeypatch):
    def out(made, batch):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(run, "step_peak", out)
    with pytest.raises(UserError, match=r"lower data\.batch"):
        measured()


@pytest.mark.usefixtures("no_profiler")
@pytest.mark.parametrize("recompute", ["none", "once"])
def test_counted_flops_are_those_of_a_real_step(recompute):
    ground = Ground(config(memory__recompute=recompute))
    batch = ground.batches()[0]
    for candidate in ground.candidates([MLAAN(), DGL()], [3]):
        assert isinstance(candidate, Candidate)
        made, segments = ground.make(candidate, batch)
        assert ground.flops(candidate, segments) == flops(lambda made=made: made.step(*batch)) > 0, candidate.label


@pytest.mark.usefixtures("no_profiler")
def test_all_start_from_equal_weights_in_one_layout():
    ground = Ground(config(train__channels_last="true"))
    batch = ground.batches()[0]
    assert batch[0].is_contiguous(memory_format=torch.channels_last)
    made = [ground.make(candidate, batch)[0] for candidate in ground.candidates([DGL()], [2])]
    first, *others = [contender.backbone.net for contender in made]
    for net in others:
        for ours, theirs in zip(first.parameters(), net.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()


@pytest.mark.usefixtures("no_profiler")
def test_triton_kernels_bring_fused_rivals():
    ground = Ground(config(model__name="resnet18", data__size="32", train__kernels="triton"))
    candidates = ground.candidates([DGL()], [2])
    assert [candidate.label for candidate in candidates] == [
        *ROWS[:2], "end-to-end, fused blocks", "checkpointed, fused blocks", *DGL_ROWS, "dgl (2 modules, lean, fused)",
    ]  # fmt: skip
    fused = ground._make(candidates[2], ground.device, ground.config.train)
    assert isinstance(fused, EndToEnd)
    assert fused.settings is not None
    assert fused.settings.keep_activations
    assert ground.flops(candidates[2], None) == ground.flops(candidates[0], None)


def test_methods_by_name():
    chosen = choose_methods(["dgl", "mlaan"], config(method__reach="3"))
    assert [name_of(method) for method in chosen] == ["dgl", "mlaan paper reach=3", "mlaan light reach=3"]
    assert [name_of(method) for method in choose_methods(["mlaan"], config(method__preset="light"))] == ["mlaan light"]
    with pytest.raises(UserError, match="--methods nonesuch must be of auglocal, backlink"):
        choose_methods(["nonesuch"], config())
    with pytest.raises(UserError, match="in any case"):
        choose_methods(["end_to_end"], config())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--modules", "2,1"], "from 2 on"),
        (["--methods", "dgl,,mlaan"], "commas between them"),
        (["--out", "/dev/null/there"], "give another folder"),
    ],
)
def test_bad_options(words, message, capsys):
    assert main([*WORDS, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_profiler")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_reach_end_to_end(precision):
    ground = Ground(config(train__precision=precision))
    batch = ground.batches()[0]
    (plain, *_) = ground.candidates([], [2])
    made, _ = ground.make(plain, batch)
    assert isinstance(made, EndToEnd)
    seen = []
    made.parts[0][1].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    before = [weight.detach().clone() for weight in made.trained]
    loss = made.step(*batch)
    assert loss.item() == pytest.approx(2.3, abs=0.5)
    assert set(seen) == {getattr(torch, precision)}
    moved = [float((now.detach() - then).abs().max()) for now, then in zip(made.trained, before, strict=True)]
    assert 0 < max(moved) < 1e-2  # the scale of float16 is out again
    with made.updating_in_the_backward():
        made.step(*batch)
    again = [float((now.detach() - then).abs().max()) for now, then in zip(made.trained, before, strict=True)]
    assert max(moved) < max(again) < 1e-2
    assert all(weight.grad is None for weight in made.trained)
    assert ground.flops(plain, None) == Ground(config()).flops(plain, None)


@pytest.mark.usefixtures("no_profiler")
def test_a_method_of_the_config_runs_without_being_listed(tmp_path):
    words = ["--method.name", "predsim", "--modules", "2", "--rounds", "1", "--out"]
    assert main([*WORDS, *words, str(tmp_path / "a")]) == 0
    assert main([*WORDS, *words, str(tmp_path / "b"), "--methods", "dgl"]) == 0
    families = [
        {row["family"] for row in json.loads((tmp_path / name / "compare.json").read_text())["rows"]} for name in "ab"
    ]
    assert families[0] == {"end-to-end", "checkpointed", "dgl", "mlaan paper", "mlaan light", "predsim"}
    assert families[1] == {"end-to-end", "checkpointed", "dgl"}


def test_what_end_to_end_does_not_get_is_told():
    assert Ground(config()).notes() == []
    (note,) = Ground(config(train__executor="graph", train__compile="modules")).notes()
    assert note.startswith("train.executor = 'graph' and train.compile = 'modules': for the local learners alone")
