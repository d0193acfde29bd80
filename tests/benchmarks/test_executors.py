"""Steps by several executors on a tiny network: rows, a gate that shuts, and executors that only bear the name."""

import json

import pytest
import torch
from benchmarks.executors import Contest

from benchmarks import executors
from exact.compare import tiny_imagenet_style
from execute.test_graph import captured
from execute.test_streams import RecordingLanes, on_lanes
from mlaan.errors import UserError
from mlaan.execute.eager import EagerExecutor

WAYS = ("eager", "streams", "graph")
TINY = Contest("tiny-light", tiny_imagenet_style, 4, "light", "even", 8, WAYS, ("eager", "graph"), size=16)
CPU = ["--device", "cpu", "--rounds", "1"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(executors, "step_peak", lambda made, batch: made.step(*batch) and 100)
    for name, value in {"BATCHES": 1, "WARMUP": 0}.items():
        monkeypatch.setattr(executors, name, value)


@pytest.fixture
def faked(monkeypatch):
    """All executors run on the CPU; `faked[name](engine)` makes a contender's engine what a GPU would have."""
    changes, real = {}, executors.make_engine

    def make(contest, entry, device):
        made = real(contest, entry._replace(executor="eager"), device)
        return changes.get(entry.name, lambda engine: engine)(made)

    monkeypatch.setattr(executors, "runs_on", lambda device, way: True)
    monkeypatch.setattr(executors, "make_engine", make)
    return changes


def rows_of(tmp_path, code):
    file = tmp_path / "rows.json"
    assert executors.main([*CPU, "--json", str(file), "--commit", "abc"], [TINY]) == code
    return {row["contender"]: row for row in json.loads(file.read_text())} if file.exists() else {}


def test_on_a_cpu_the_eager_ones_run_alone(tmp_path):
    rows = rows_of(tmp_path, 0)
    assert list(rows) == ["eager", "end-to-end"]
    for name, row in rows.items():
        assert row["time_ratio"][name]["median"] == row["peak_ratio"][name] == 1
        assert (row["case"], row["dtype"], row["commit"]) == (TINY.name, "bfloat16 autocast", "abc")
        assert row["images_per_second"] > 0
        assert "obstacle" not in row


def test_streams_tell_their_number_and_overlap_and_a_graph_has_no_peak(tmp_path, faked):
    faked["streams"] = lambda engine: on_lanes(engine, 2)
    faked["graph"] = captured
    rows = rows_of(tmp_path, 0)
    assert list(rows) == ["eager", "streams", "graph", "end-to-end", "end-to-end graph"]
    assert (rows["streams"]["lanes"], "overlap" in rows["streams"]) == (2, True)
    assert not {"lanes", "overlap"} & (rows["eager"].keys() | rows["graph"].keys())
    assert {name for name, row in rows.items() if "peak_bytes" not in row} == {"graph"}
    assert rows["graph"]["time_ratio"].keys() == rows.keys()


def test_two_streams_are_taken_whatever_is_predicted(monkeypatch):
    """The engine itself would choose one for a network so small."""
    device, real = torch.device("cpu"), executors.Engine
    monkeypatch.setattr(executors, "Engine", lambda *some, executor, **named: on_lanes(real(*some, **named), 1))
    made = executors.make_engine(TINY, TINY.entries(device)[0]._replace(executor="2 streams"), device)
    lanes, _ = made.executor.way((8, 3, 16, 16))
    assert lanes.count == 2 == len(set(lanes.lane))


def test_a_graph_that_could_not_be_captured_says_why_and_the_case_has_failed(tmp_path, faked, capsys):
    def give_up(engine):
        made = captured(engine)
        made.executor.graphs.capture = lambda run: (_ for _ in ()).throw(RuntimeError("it reads back"))
        return made

    faked["graph"] = give_up
    with pytest.warns(RuntimeWarning, match="it reads back"):
        rows = rows_of(tmp_path, 1)
    assert rows["graph"]["obstacle"] == "it reads back"
    assert "tiny-light graph: failed: it reads back" in capsys.readouterr().out


def test_streams_that_cannot_be_profiled_keep_their_times_and_the_case_has_failed(tmp_path, faked, monkeypatch):
    def blind(*_):
        raise UserError("no counters")

    monkeypatch.setattr(executors.profiling, "measure", blind)
    faked["streams"] = lambda engine: on_lanes(engine, 2, RecordingLanes(2))
    row = rows_of(tmp_path, 1)["streams"]
    assert (row["obstacle"], row["lanes"]) == ("no counters", 2)
    assert row["images_per_second"] > 0


def forgets_updates(engine):
    """Its second step and all later ones move no weight."""
    run, steps = engine.executor.run, []

    def planted(images, labels, *, update=True):
        steps.append(1)
        return run(images, labels, update=update and len(steps) < 2)

    engine.executor.run = planted
    return engine


def stale(engine):
    """Gives the first step's losses for ever."""
    run, found = engine.executor.run, []

    def planted(images, labels, *, update=True):
        found.append(run(images, labels, update=update))
        return found[0]

    engine.executor.run = planted
    return engine


@pytest.mark.parametrize("planted", [forgets_updates, stale])
def test_an_executor_with_other_losses_gets_no_row(planted, tmp_path, faked, capsys):
    faked["graph"] = planted
    assert rows_of(tmp_path, 1) == {}
    assert "refused: WrongLossesError: tiny-light: the loss " in capsys.readouterr().out


def test_contenders_of_a_method_begin_with_equal_weights_and_run_the_whole_plan_they_are_named_for():
    device = torch.device("cpu")
    assert [entry.name for entry in TINY.entries(device)] == ["eager", "end-to-end"]
    assert [entry.name for entry in TINY.entries(torch.device("cuda"))][1:3] == ["streams", "graph"]
    first, second = (executors.make_engine(TINY, TINY.entries(device)[0], device) for _ in range(2))
    assert type(first.executor) is EagerExecutor
    state, other = first.state_dict()["backbone"], second.state_dict()["backbone"]
    assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("contest", executors.CONTESTS, ids=lambda contest: contest.name)
def test_the_rounds_cases_are_those_of_the_targets(contest):
    assert contest.executors[0] == "eager"
    assert contest.name.startswith(f"{contest.backbone.args[0]}-{contest.modules}-{contest.preset}")
