"""`mlaan probe`, from a person's side, on runs of an epoch on handwritten digits."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.official_files import write_images
from mlaan import checkpoint
from mlaan.build import build
from mlaan.cli import main, probe
from mlaan.cli.settings import load_config
from mlaan.data import Digits
from mlaan.probe import cka_matrix, fit, pooled_features
from mlaan.probe.result import Likeness, ModuleProbe, Probe, as_text
from trainer.tiny import one_thread, start

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of resnet20: MLAAN in two modules, and end-to-end in one."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--data.name", "digits", "--data.batch", "64", "--train.epochs", "1", "--train.device", "cpu"]
    common += ["--run.tensorboard", "false"]
    torch.set_num_threads(1)
    for name, words in (
        ("ours", ["--method.preset", "light", "--partition.modules", "2"]),
        ("plain", ["--method.name", "end_to_end", "--partition.modules", "1"]),
    ):
        assert main(["train", *common, *words, "--run.folder", str(folder / name)]) == 0
    return folder


def read(run: Path) -> dict:
    return json.loads((run / "probe.json").read_text())


def test_a_run_is_probed_where_its_modules_end(runs, capsys):
    before = {path: path.read_bytes() for path in (runs / "ours").rglob("*") if path.is_file()}
    assert main(["probe", str(runs / "ours")]) == 0
    out = capsys.readouterr().out
    found = read(runs / "ours")
    assert [(m["module"], m["blocks"], m["channels"]) for m in found["modules"]] == [
        (0, "1.0-2.0", 32),
        (1, "2.1-3.2", 64),
    ]
    assert [found["images"], found["test_images"]] == [1438, 359]
    last = json.loads((runs / "ours" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["test_top1"] == last["test_top1"]
    top1 = [module["top1"] for module in found["modules"]]
    assert min(top1) > 0.5  # ten digits: chance is 0.1
    for value in top1:
        assert f"{100 * value:.1f} %" in out
    assert [found["cka"][0][0], found["cka"][1][1]] == pytest.approx([1, 1])
    assert found["cka"][0][1] == pytest.approx(found["cka"][1][0])
    assert 0 < found["cka"][0][1] < 1
    assert found["against"] is None
    assert (runs / "ours" / "probe.png").stat().st_size > 10_000
    for path, content in before.items():
        assert path.read_bytes() == content


def test_the_probes_learn_from_plain_training_images_and_are_tested_on_test_images(runs):
    assert main(["probe", str(runs / "ours"), "--images", "300"]) == 0
    saved = checkpoint.load(runs / "ours" / "last.pt")
    engine = build(load_config(runs / "ours" / "config.toml", [])).engine
    engine.load_state_dict(saved.engine)
    data = Digits().load()
    first = torch.from_numpy(np.random.RandomState(0).permutation(1438)[:300])

    def features(images, labels):
        pixels = (images / 255 - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(data.std).view(-1, 1, 1)
        return pooled_features(engine.backbone, [(pixels, labels)], [4])

    train = features(data.train_images[first], data.train_labels[first])
    test = features(data.test_images, data.test_labels)
    expected = fit(train.depths[0], train.labels, 10).top1(test.depths[0], test.labels)
    assert read(runs / "ours")["modules"][0]["top1"] == pytest.approx(expected)
    assert expected < fit(train.depths[0], train.labels, 10).top1(train.depths[0], train.labels) - 0.01


def test_image_files_are_probed_as_they_are_tested(tmp_path):
    """Training files through the test's view: no random part, every file once."""
    write_images(tmp_path / "set", train=4, test=2)
    root = {"data.name": "imagenet", "data.root": str(tmp_path / "set"), "data.classes": "3", "data.size": "16"}
    root |= {"data.workers": "0", "data.batch": "4", "train.epochs": "1", "train.device": "cpu"}
    words = [word for key, value in root.items() for word in (f"--{key}", value)]
    assert main(["train", *words, "--run.tensorboard", "false", "--run.folder", str(tmp_path / "run")]) == 0
    assert main(["probe", str(tmp_path / "run"), "--images", "9"]) == 0
    assert [read(tmp_path / "run")[key] for key in ("images", "test_images")] == [9, 6]
    first = read(tmp_path / "run")["modules"]
    assert main(["probe", str(tmp_path / "run")]) == 0
    assert read(tmp_path / "run")["images"] == 12
    shutil.rmtree(tmp_path / "set" / "train")
    shutil.copytree(tmp_path / "set" / "val", tmp_path / "set" / "train")
    assert main(["probe", str(tmp_path / "run"), "--data.batch", "3"]) == 0
    assert [module["top1"] for module in read(tmp_path / "run")["modules"]] == [1.0] * len(first)


def test_runs_of_other_partitions_are_compared_where_the_first_ones_modules_end(runs, capsys):
    ours, plain = str(runs / "ours"), str(runs / "plain")
    assert main(["probe", ours, plain, "--against", plain, "--images", "200"]) == 0
    out = capsys.readouterr().out
    assert "plain after epoch 1, at the ends of ours's modules: linear probes on 200 training images" in out
    assert out.count("CKA to plain") == 2
    first, second = read(runs / "ours"), read(runs / "plain")
    assert second["depths_of"] == "ours"
    assert [m["blocks"] for m in second["modules"]] == [m["blocks"] for m in first["modules"]]
    assert first["images"] == 200
    diagonal = [second["against"]["cka"][i][i] for i in (0, 1)]
    assert diagonal == pytest.approx([1, 1])  # against itself
    assert all(0 < first["against"]["cka"][i][i] < 0.999 for i in (0, 1))
    torch.testing.assert_close(torch.tensor(second["against"]["cka"]), torch.tensor(second["cka"]))


def test_a_row_of_the_cka_is_a_module_of_the_run_itself(runs, monkeypatch):
    calls = []

    def watched(ours, theirs):
        calls.append((ours, theirs, cka_matrix(ours, theirs)))
        return calls[-1][-1]

    monkeypatch.setattr(probe, "cka_matrix", watched)
    assert main(["probe", str(runs / "ours"), "--against", str(runs / "plain"), "--images", "200"]) == 0
    [own] = [call[0] for call in calls if call[0] is call[1]]
    [(ours, _, found)] = [call for call in calls if call[0] is not call[1]]
    assert ours is own
    assert found[0][1] != pytest.approx(found[1][0], abs=1e-3)
    assert read(runs / "ours")["against"]["cka"] == found


def test_the_weights_are_those_of_the_last_checkpoint(runs, tmp_path):
    """Another net's weights under the same settings: other features."""
    shutil.copytree(runs / "ours", tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    saved.engine["backbone"]["bn1.weight"].mul_(torch.linspace(-1, 1, 16))
    checkpoint.save(saved, tmp_path / "run" / "last.pt")
    assert main(["probe", str(tmp_path / "run"), "--against", str(runs / "ours")]) == 0
    found = read(tmp_path / "run")
    assert all(found["against"]["cka"][i][i] < 0.99 for i in (0, 1))


def test_what_does_not_fit_is_one_line(runs, tmp_path, capsys):
    other_data, other_net = tmp_path / "data", tmp_path / "net"
    start(other_data, train__epochs="1")
    start(other_net, train__epochs="1", model__name="resnet32")
    ours = str(runs / "ours")
    capsys.readouterr()
    for words, message in (
        ([ours, str(other_data)], "other test images"),
        ([str(other_data), "--against", str(other_net)], "trained a resnet32"),
        ([str(tmp_path)], "holds no run"),
        ([ours, "--images", "0"], "--images 0 must be at least 1"),
        ([ours, "--method.reach", "3"], "--method.reach 3 cannot change a trained network"),
    ):
        assert main(["probe", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_without_matplotlib_there_are_figures_and_no_picture(runs, capsys, monkeypatch):
    (runs / "ours" / "probe.png").unlink(missing_ok=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["probe", str(runs / "ours"), "--images", "100"]) == 0
    assert "pip install matplotlib" in capsys.readouterr().out
    assert read(runs / "ours")["images"] == 100
    assert not (runs / "ours" / "probe.png").exists()


def test_an_undefined_likeness_is_a_dash_and_null():
    matrix, module = [[math.nan]], ModuleProbe(0, "1.0-1.2", 16, 0.5)
    probe = Probe("a", 1, "a", 2, 2, 1e-4, 0.5, (module,), matrix, Likeness("b", matrix))
    assert probe.as_dict()["cka"] == [[None]]
    assert json.dumps(probe.as_dict(), allow_nan=False)
    assert probe.against is not None
    assert math.isnan(probe.against.same_depth[0])
    assert "nan" not in as_text(probe)


def test_the_command_imports_no_optional_part():
    code = "import sys, mlaan.cli.probe; sys.exit(str([m for m in ('matplotlib', 'sklearn') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
