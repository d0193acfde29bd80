"""Tests of a network: every image once, whatever the batches; top-1 and top-5; other precisions and sizes."""

import math

import pytest
import torch
from torch import nn

from mlaan import Engine
from mlaan.cli import main
from mlaan.engine import Evaluation
from mlaan.errors import UserError
from mlaan.models import BACKBONES
from trainer.tiny import one_thread, start

__all__ = ["one_thread"]


def engine_of(classes: int, **settings) -> Engine:
    torch.manual_seed(0)
    settings = {"preset": "light", "modules": 2, "input_shape": (3, 16, 16)} | settings
    return Engine(BACKBONES["resnet20"](classes, 3), **settings)


def images_of(count: int, classes: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, 3, size, size, generator=generator), torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("batch", [1, 7, 30, 100])
def test_figures_are_those_of_all_images_at_once(batch):
    engine, (images, labels) = engine_of(12), images_of(30, 12)
    found = engine.evaluate(zip(images.split(batch), labels.split(batch), strict=True))
    with torch.no_grad():
        logits = engine.backbone.net.eval()(images).double()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.samples == 30
    assert (found.top1, found.top5) == (float((ranks < 1).double().mean()), float((ranks < 5).double().mean()))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-5)
    assert 0 < found.top1 < found.top5 < 1


def test_in_a_lower_precision_the_loss_is_that_of_its_logits_in_float32():
    engine, (images, labels) = engine_of(12, precision="bfloat16"), images_of(30, 12)
    seen = []
    engine.backbone.net.register_forward_hook(lambda *given: seen.append(given[-1]))
    found = engine.evaluate([(images, labels)])
    [logits] = seen
    assert logits.dtype == torch.bfloat16
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits.double(), labels)), rel=1e-6)


def test_among_five_classes_there_is_no_top_5():
    images, labels = images_of(8, 5)
    assert math.isnan(engine_of(5).evaluate([(images, labels)]).top5)
    assert math.isnan(Evaluation(1.0, 0.5, 8).top5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_is_tested_in_another_precision(tmp_path, capsys, precision):
    run = tmp_path / "run"
    assert start(run, train__precision="float16", train__epochs="1") == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--train.precision", precision]) == 0
    said = capsys.readouterr().out
    assert f"in {precision}" in said
    assert "of 12 images)" in said
    assert main(["eval", str(run), "--data.batch", "5"]) == 0, "a batch that does not divide the images"
    assert "of 12 images)" in capsys.readouterr().out
    assert main(["eval", str(run), "--train.seed", "5"]) == 2
    assert "train.precision" in capsys.readouterr().err


def test_images_of_the_sizes_that_were_announced_are_taken():
    engine = engine_of(4, sizes=[(8, 8), (12, 12)])
    for size in (8, 12, 16):
        result = engine.step(*images_of(6, 4, size))
        assert result.losses.isfinite().all()
    with pytest.raises(UserError, match=r"images of 3x10x10 .* came to an engine made for 3x16x16"):
        engine.step(*images_of(6, 4, 10))
    with pytest.raises(UserError, match="images of 3x12x12"):
        engine_of(4).step(*images_of(6, 4, 12))


@pytest.mark.parametrize("method", ["mlaan", "dgl", "predsim", "backlink", "auglocal", "end_to_end"])
def test_methods_whose_heads_pool_train_on_smaller_images(method):
    torch.manual_seed(0)
    engine = Engine(BACKBONES["resnet20"](4, 3), method, 3, input_shape=(3, 16, 16), sizes=[(8, 8)])
    assert engine.step(*images_of(6, 4, 8)).losses.isfinite().all()


def test_a_network_for_one_size_alone_is_refused_at_the_start():
    stem = nn.Conv2d(3, 4, 3, padding=1)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2)]
    net = nn.Sequential(stem, *blocks, nn.Sequential(nn.Flatten(1), nn.Linear(4 * 16 * 16, 4)))
    Engine(net, "end_to_end", 1, input_shape=(3, 16, 16))
    with pytest.raises(UserError, match=r"images of 8x8 .* made for 16x16 alone.*data\.start_size = 0"):
        Engine(net, "end_to_end", 1, input_shape=(3, 16, 16), sizes=[(8, 8)])
