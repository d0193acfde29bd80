"""The study from end to end: runs of an epoch on handwritten digits, to tables, plots and a page."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from benchmarks.study import page, plots, results, tables
from benchmarks.study.__main__ import main

from mlaan.build import build
from mlaan.cli import main as mlaan
from mlaan.cli.settings import load_config

ROOT = Path(__file__).parents[2]
BASE = """
[data]
name = "digits"
batch = 128
[partition]
modules = 2
[optim]
learning_rate = 0.1
[train]
epochs = 1
device = "cpu"
[run]
tensorboard = false
"""
CONFIGS = {
    "end_to_end": '# end-to-end\nbase = "base.toml"\nmethod.name = "end_to_end"\n',
    "end_to_end_2": '# end-to-end, 2 epochs\nbase = "end_to_end.toml"\ntrain.epochs = 2\n',
    "methods/dgl": '# DGL\nbase = "../base.toml"\nmethod.name = "dgl"\n',
}
RUNS = ("end_to_end-seed0", "end_to_end-seed1", "end_to_end_2-seed0", "dgl-seed0", "dgl-seed1")
PAGE = "".join(f"## {name}\n\n<!-- study:{name} -->\n<!-- /study -->\n" for name in ("setting", "methods", "costs"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """configs/, runs/ with finished runs, and docs/study.md."""
    folder = tmp_path_factory.mktemp("study")
    torch.set_num_threads(1)
    (folder / "configs/methods").mkdir(parents=True)
    (folder / "configs/base.toml").write_text(f"# what all share{BASE}")
    for name, text in CONFIGS.items():
        (folder / f"configs/{name}.toml").write_text(text)
    for run in RUNS:
        stem, _, seed = run.rpartition("-seed")
        [config] = (folder / "configs").rglob(f"{stem}.toml")
        words = ["--config", str(config), "--train.seed", seed, "--run.folder", str(folder / "runs" / run)]
        with mock.patch("mlaan.report.draw"):  # a picture takes longer than the training
            assert mlaan(["train", *words]) == 0
    (folder / "docs").mkdir()
    (folder / "docs/study.md").write_text(PAGE)
    return folder


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The figures that were to be drawn; tests/benchmarks/test_study_parts.py draws some."""
    figures = []
    monkeypatch.setattr(plots, "draw", lambda found, folder: figures.append(found) or [])
    return figures


def study_of(folder: Path, *words: str, runs: bool = True) -> int:
    where = ["--out", str(folder / "docs/study"), "--configs", str(folder / "configs")]
    return main([*([str(folder / "runs")] if runs else []), *where, *words])


def last(folder: Path, run: str) -> dict:
    return json.loads((folder / "runs" / run / "metrics.jsonl").read_text().splitlines()[-1])


def test_tables_hold_what_the_runs_reached(study, drawn, capsys):
    assert mlaan(["probe", str(study / "runs/dgl-seed0"), "--against", str(study / "runs/end_to_end-seed0")]) == 0
    probe = json.loads((study / "runs/dgl-seed0/probe.json").read_text())
    assert study_of(study) == 0
    assert "study.md, without pairs, probe, cka" in capsys.readouterr().out
    found = results.load(study / "docs/study/results.json")
    assert [variant.stem for variant in found.variants] == ["end_to_end", "end_to_end_2", "dgl"]
    reference, longer, dgl = found.variants
    assert dgl.top1 == {str(seed): last(study, f"dgl-seed{seed}")["test_top1"] for seed in (0, 1)}
    assert (longer.steps, longer.epochs, longer.end_to_end) == (last(study, "end_to_end_2-seed0")["step"], 2, True)
    assert reference.cost == longer.cost != dgl.cost
    engine = build(load_config(study / "configs/methods/dgl.toml", [])).engine
    plans = engine.describe(128)["plans"]
    assert found.costs[dgl.cost].flops == plans["this plan"]["flops"]
    assert found.costs[dgl.cost].flops_ratio == plans["this plan"]["flops"] / plans["end-to-end"]["flops"]
    assert found.total_flops(dgl) == 11 * plans["this plan"]["flops"]
    peaks = {name: plan["peak_activation_bytes"] for name, plan in plans.items()}
    assert found.costs[dgl.cost].predicted_bytes == peaks["this plan"]
    assert found.costs[dgl.cost].predicted_ratio == peaks["this plan"] / peaks["end-to-end"]
    segments = next(name for name in plans if name.endswith("checkpointed segments"))
    rival = plans[segments]["flops"] / plans["end-to-end"]["flops"], peaks[segments] / peaks["end-to-end"]
    assert (found.checkpointed.flops_ratio, found.checkpointed.predicted_ratio) == rival
    trained = [w for part in (engine.backbone.net, engine.heads) for w in part.parameters() if w.requires_grad]
    assert found.costs[dgl.cost].trained == sum(weight.numel() for weight in trained)
    assert dgl.probe is not None
    assert dgl.probe.top1 == tuple(module["top1"] for module in probe["modules"])
    assert dgl.probe.cka == tuple(row[i] for i, row in enumerate(probe["against"]["cka"]))
    text = (study / "docs/study.md").read_text()
    assert tables.accuracy(found, found.of_group("methods")) in text
    assert "- seeds: 0, 1" in text
    assert (study / "docs/study/pairs.md").read_text() == tables.all_pairs(found) + "\n"
    assert drawn == [found]


def variant_of(folder: Path, stem: str) -> results.Variant:
    assert study_of(folder) == 0
    return next(each for each in results.load(folder / "docs/study/results.json").variants if each.stem == stem)


def copied(study: Path, folder: Path) -> Path:
    for part in ("configs", "docs", "runs"):
        shutil.copytree(study / part, folder / part)
    return folder


def test_what_counts_is_the_last_epoch_not_the_best(study, tmp_path):
    metrics = copied(study, tmp_path) / "runs/dgl-seed0/metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"test_top1": 0.25, "best_top1": 0.75})
    metrics.write_text("\n".join(lines) + "\n")
    assert variant_of(tmp_path, "dgl").top1["0"] == 0.25


@pytest.mark.parametrize("other", ["end_to_end-seed1", "end_to_end_2-seed0"])
def test_likeness_to_another_seed_or_length_is_left_out(study, tmp_path, other):
    runs = copied(study, tmp_path) / "runs"
    assert mlaan(["probe", str(runs / "dgl-seed0"), "--against", str(runs / other)]) == 0
    found = variant_of(tmp_path, "dgl").probe
    assert found is not None
    assert found.cka is None


def test_without_runs_the_page_is_made_anew_from_the_results(study, tmp_path):
    assert study_of(study) == 0
    shutil.copytree(study / "docs", tmp_path / "docs")
    before = (tmp_path / "docs/study.md").read_text()
    (tmp_path / "docs/study.md").write_text(before.replace("DGL", "edited by hand"))
    assert study_of(tmp_path, runs=False) == 0
    assert (tmp_path / "docs/study.md").read_text() == before


def test_steps_are_measured_beside_plain_end_to_end_and_kept(study):
    assert study_of(study, "--measure", "--rounds", "2", "--commit", "abc") == 0
    found = results.load(study / "docs/study/results.json")
    assert "commit abc, batch 128, float32, 2 rounds" in found.measured_on
    for cost in (*found.costs.values(), found.checkpointed):
        assert cost.measured is not None
        assert 0 < cost.measured.time_ratio[0] <= cost.measured.time_ratio[1] <= cost.measured.time_ratio[2]
        # ours holds saved activations, gradients and workspace; the prediction has only the first
        assert cost.predicted_bytes * 0.8 < cost.measured.peak_bytes < cost.predicted_bytes * 4
    plain, dgl = (found.costs[variant.cost].measured for variant in (found.variants[0], found.variants[2]))
    checkpointed = found.checkpointed.measured
    assert plain
    assert dgl
    assert checkpointed
    assert checkpointed.peak_bytes < plain.peak_bytes
    assert plain.peak_ratio == pytest.approx(1, abs=0.3)
    assert study_of(study) == 0  # again from the runs, not measured
    assert results.load(study / "docs/study/results.json") == found


def test_what_is_unfinished_is_left_out_and_said(study, tmp_path, capsys):
    (copied(study, tmp_path) / "runs/dgl-seed1/metrics.jsonl").write_text("")
    assert study_of(tmp_path) == 0
    assert "left out: dgl-seed1 is not finished" in capsys.readouterr().out
    assert list(results.load(tmp_path / "docs/study/results.json").variants[-1].top1) == ["0"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: [shutil.rmtree(f / f"runs/end_to_end-seed{seed}") for seed in (0, 1)], "no finished run end_to_end"),
        (lambda f: (f / "configs/methods/dgl.toml").unlink(), "has no config dgl.toml"),
        (lambda f: (f / "configs/methods/dgl.toml").write_text('base = "../base.toml"\n'), "first line must be"),
        (lambda f: (f / "configs/base.toml").write_text(BASE.replace("128", "64")), "data.batch = 128"),
        (lambda f: shutil.copy(f / "runs/end_to_end-seed0/last.pt", f / "runs/dgl-seed0"), "other auxiliary networks"),
        (lambda f: (f / "docs/study.md").unlink(), "study.md is not there"),
    ],
)
def test_what_does_not_fit_is_one_line(study, tmp_path, capsys, spoil, message):
    for part in ("configs", "docs", "runs"):
        shutil.copytree(study / part, tmp_path / part)
    spoil(tmp_path)
    assert study_of(tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not (ROOT / "docs/study/results.json").exists(), reason="the study has not been run yet")
@pytest.mark.parametrize("name", ["docs/study.md", "README.md"])
def test_the_projects_own_pages_show_the_results_as_they_are(name):
    blocks = tables.blocks(results.load(ROOT / "docs/study/results.json"))
    text = (ROOT / name).read_text(encoding="utf-8")
    assert page.rewritten(text, blocks, name) == text
