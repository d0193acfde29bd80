"""The table and the picture of a run."""

import importlib.util
import json

import pytest

from mlaan import report
from mlaan.errors import UserError
from mlaan.run_folder import RunFolder
from trainer.tiny import config


def epoch_line(epoch: int, modules: int) -> dict:
    names = [f"{m}.{kind}" for m in range(modules - 1) for kind in ("independent", "cascaded")]
    names.append(f"{modules - 1}.classifier")
    return {
        "type": "epoch",
        "epoch": epoch,
        "step": 10 * epoch,
        "seconds": 40.0 * epoch,
        "learning_rate": 0.1,
        "images_per_second": 500.0,
        "memory_bytes": 100 * 2**20,
        "losses": {name: 2.0 / (epoch + i) for i, name in enumerate(names)},
        "top1": {name: 1 - 1 / (1 + epoch + i) for i, name in enumerate(names)},
        "test_loss": 0.25,
        "test_top1": {1: 0.5, 2: 0.975}.get(epoch, 0.9),
        "best_top1": 0.975 if epoch > 1 else 0.5,
        "best_epoch": min(epoch, 2),
    }


@pytest.fixture
def folder(tmp_path):
    settings = config(run__folder=str(tmp_path / "run"))
    folder = RunFolder.create(settings)
    folder.write_config(settings)
    write(folder, epochs=3)
    return folder


def write(folder: RunFolder, epochs: int, modules: int = 2) -> None:
    lines = [json.dumps(epoch_line(epoch + 1, modules)) + "\n" for epoch in range(epochs)]
    folder.metrics.write_text("".join(lines))


def test_the_table_has_a_row_per_module_and_the_results(folder):
    lines = report.summary(folder).splitlines()
    assert lines[2].split() == ["0", "0.6667", "75.0", "%", "0.5000", "80.0", "%"]
    assert lines[3].split() == ["1", "0.4000", "83.3", "%"]
    text = "\n".join(lines[4:])
    for fact in ("90.0 % of the exported", "97.5 % after epoch 2 of 3", "2:00, 500 img/s", "100 MiB", str(folder.path)):
        assert fact in text


def test_a_run_without_an_epoch_has_no_report(folder):
    write(folder, epochs=0)
    for show in (report.summary, report.draw):
        with pytest.raises(UserError, match="has not finished an epoch"):
            show(folder)


@pytest.mark.parametrize(("epochs", "modules"), [(3, 2), (1, 1), (90, 16)], ids=["short", "one-epoch", "long-and-deep"])
def test_the_picture_is_drawn(folder, epochs, modules):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.image import imread

    write(folder, epochs, modules)
    image = imread(report.draw(folder))[..., :3]
    height, width = image.shape[:2]
    assert (height, width) == (600, 1800)
    coloured = (image.max(-1) - image.min(-1)) > 0.2
    for panel in (slice(0, width // 3), slice(width // 3, 2 * width // 3), slice(2 * width // 3, width)):
        assert (image[:, panel] < 0.5).all(-1).mean() > 0.002, "no ink"
        assert coloured[:, panel].sum() >= 20, "no lines"


def test_matplotlib_is_named_when_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        report.draw(folder)
