"""The step benchmark on tiny networks: rows, equal terms, and a gate that shuts."""

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.contenders import Case, check_gradients, make_batches, make_contenders, step_peak

from benchmarks import steps
from mlaan.execute import step_state
from mlaan.models import CifarResNet, resnet_backbone

CPU = torch.device("cpu")
CONTENDERS = ["end-to-end", "checkpointed", "two-path", "ours"]


def tiny():
    return resnet_backbone(CifarResNet(14))


LIGHT = Case("tiny-light", tiny, 8, 6, "light", "even", batch=4, gpu_batch=4, rounds=2)
PAPER = Case("tiny-paper", tiny, 8, 3, "paper", "flops", batch=4, gpu_batch=4, rounds=2)


@pytest.fixture
def planted(monkeypatch):
    """An engine that forgets one cotangent wherever there are six modules."""
    arrive = step_state.StepState._arrive

    def forgetful(self, module, left, cotangent, scaled):
        if (self.graph.modules, module, left) == (6, 4, 2):
            cotangent = replace(cotangent, pooled=cotangent.pooled * 0)
        arrive(self, module, left, cotangent, scaled)

    monkeypatch.setattr(step_state.StepState, "_arrive", forgetful)


def test_a_case_runs_through(tmp_path, capsys):
    file = tmp_path / "rows" / "steps.json"
    options = ["--cases", LIGHT.name, "--rounds", "3", "--batch", "5", "--json", str(file), "--commit", "abc"]
    assert steps.main(options, [LIGHT, PAPER]) == 0
    rows = json.loads(file.read_text())
    assert [row["contender"] for row in rows] == CONTENDERS
    end_to_end, checkpointed, two_path, ours = rows
    for row in rows:
        assert row["case"] == LIGHT.name
        assert row["shape"] == [5, 3, 8, 8]
        assert (row["commit"], row["rounds"], row["dtype"], row["torch"]) == ("abc", 3, "float32", torch.__version__)
        assert row["threads"] == torch.get_num_threads()
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
        for other in ("end-to-end", "two-path"):
            assert 0 < row["time_ratio"][other]["low"] <= row["time_ratio"][other]["high"]
    assert two_path["time_ratio"]["two-path"] == {"low": 1, "median": 1, "high": 1}
    assert end_to_end["flops"] < ours["flops"] < two_path["flops"]
    assert end_to_end["flops"] < checkpointed["flops"]
    assert ours["peak_bytes"] < end_to_end["peak_bytes"]
    assert ours["flops_ratio"]["two-path"] == ours["flops"] / two_path["flops"]
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in CONTENDERS)
    assert "this machine's" in printed
    assert PAPER.name not in printed


def test_wrong_gradients_get_no_row(planted, tmp_path, capsys):
    file = tmp_path / "steps.json"
    assert steps.main(["--json", str(file), "--rounds", "1"], [LIGHT, PAPER]) == 1
    assert {row["case"] for row in json.loads(file.read_text())} == {PAPER.name}
    refusals = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused")]
    assert len(refusals) == 1
    assert "tiny-light: gradients differ" in refusals[0]


def test_without_a_bug_the_gate_is_open():
    assert check_gradients(LIGHT, CPU) < 1e-9
    assert check_gradients(PAPER, CPU) < 1e-9


def test_equal_terms():
    batches = make_batches(PAPER, 4, 2, CPU, torch.float32)
    contenders, segments = make_contenders(PAPER, batches[0])
    nets = [contenders["end-to-end"].net, contenders["checkpointed"].net, contenders["ours"].backbone.net]
    start = [[weight.clone() for weight in net.parameters()] for net in nets]
    judge = contenders["two-path"]
    assert sorted(w.sum().item() for part in (judge.stem, *judge.modules) for w in part.parameters()) == pytest.approx(
        sorted(w.sum().item() for name, w in nets[2].named_parameters() if not name.startswith("fc"))
    )
    for ours, plain, checkpointed in zip(start[2], start[0], start[1], strict=True):
        assert torch.equal(ours, plain)
        assert torch.equal(ours, checkpointed)
    for batch in batches:
        plain, checkpointed = (contenders[name].step(*batch) for name in ("end-to-end", "checkpointed"))
        assert plain.item() == pytest.approx(checkpointed.item(), rel=1e-5)
        contenders["ours"].step(*batch)
        judge.step(*batch)
    for plain, checkpointed in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)
    assert 2 <= segments <= 6


def test_the_best_segment_count_was_chosen():
    batch = make_batches(PAPER, 16, 1, CPU, torch.float32)[0]
    contenders, segments = make_contenders(PAPER, batch)
    checkpointed = contenders["checkpointed"]
    assert len(checkpointed.parts) == segments
    checkpointed.step(*batch)
    best = step_peak(checkpointed, batch)
    for other in (2, 4):
        checkpointed.split(other)
        assert step_peak(checkpointed, batch) >= best
    checkpointed.split(1)
    assert step_peak(checkpointed, batch) > best


def test_no_gpu_is_said(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert steps.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--cases", "nonesuch"], ["--rounds", "0"], ["--device", "tpu"]])
def test_bad_options(bad):
    with pytest.raises(SystemExit) as error:
        steps.main(bad)
    assert error.value.code == 2
