"""Probabilities in place of labels, as mixup, CutMix and label smoothing make them."""

import copy

import pytest
import torch
from torch.nn import functional as F

from execute.test_graph import captured
from mlaan import DGL, MLAAN, Engine, InfoPro, PredSim, UserError
from mlaan.cli import main
from mlaan.config import MethodConfig
from mlaan.models import CifarResNet
from trainer.test_trainer import stop_at
from trainer.tiny import config, final_state, resume, same, start

CLASSES = 10
METHODS = [MLAAN(preset="light"), MLAAN(), DGL(), PredSim(), InfoPro()]


def engine(method: MethodConfig, **settings) -> Engine:
    torch.manual_seed(0)
    normalisation = ((0.5,) * 3, (0.25,) * 3)
    return Engine(CifarResNet(14), method, 3, input_shape=(3, 8, 8), normalisation=normalisation, **settings)


def batch(seed: int = 0, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=random)
    return images, torch.rand(count, CLASSES, generator=random).softmax(1)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'preset', '')}")
def test_certain_probabilities_are_labels(method):
    images, labels = batch()[0], torch.tensor([3, 9, 0, 3])
    ours, theirs = engine(method), engine(method)
    found, wanted = ours.step(images, F.one_hot(labels, CLASSES).float()), theirs.step(images, labels)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.correct, wanted.correct)
    for mine, other in zip(ours.backbone.net.parameters(), theirs.backbone.net.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_right_answer_is_the_likeliest_class():
    ours = engine(DGL())
    images, _ = batch()
    logits = copy.deepcopy(ours.backbone.net)(images)
    answers = logits.argmax(1)
    soft = torch.full((4, CLASSES), 0.05).scatter_(1, answers[:, None], 0.55)
    soft[0] = soft[0].roll(1)
    assert ours.step(images, soft).correct[-1] == 3


def test_a_captured_step_takes_probabilities_and_is_captured_anew_for_labels():
    ours, theirs = captured(engine(MLAAN(preset="light"))), engine(MLAAN(preset="light"))
    for step in range(4):
        assert torch.equal(ours.step(*batch(step)).losses, theirs.step(*batch(step)).losses)
    labels = torch.arange(4)
    for _ in range(3):
        assert torch.equal(ours.step(batch()[0], labels).losses, theirs.step(batch()[0], labels).losses)
    assert ours.executor.captured.labels.dtype == torch.int64


def test_accumulated_parts_share_the_soft_labels_out():
    whole, parts = engine(MLAAN(preset="light")), engine(MLAAN(preset="light"), accumulate=2)
    images, soft = batch(count=8)
    found, wanted = parts.step(images, soft), whole.step(images, soft)
    assert found.samples == wanted.samples == 8
    swapped = engine(MLAAN(preset="light"), accumulate=2).step(images, soft.flip(0))
    assert not torch.allclose(swapped.losses, found.losses, rtol=1e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda soft: soft[:, :-1], r"soft labels of shape \(4, 9\) do not go with 4 images of 10 classes"),
        (lambda soft: soft[:-1], r"soft labels of shape \(3, 10\)"),
        (lambda soft: 2 * soft, "not negative and sum to 1"),
        (lambda soft: soft - 0.2, "not negative and sum to 1"),
        (lambda soft: torch.cat([2 * soft[:1], 0 * soft[1:2], soft[2:]]), "not negative and sum to 1"),
        (lambda soft: soft * torch.nan, "not negative and sum to 1"),
        (lambda soft: soft.long(), r"give one int64 class for each, or in training a row of probabilities"),
    ],
)
def test_what_is_no_probabilities_is_refused_before_anything_moves(spoil, message):
    ours = engine(MLAAN())
    before = copy.deepcopy(ours.state_dict()["backbone"])
    images, soft = batch()
    with pytest.raises(UserError, match=message):
        ours.step(images, spoil(soft))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict()["backbone"].items())


def test_contrast_and_tests_take_classes_alone():
    images, soft = batch()
    with pytest.raises(UserError, match=r"compares images by their class: give int64 labels"):
        engine(InfoPro(loss="contrastive")).step(images, soft)
    with pytest.raises(UserError, match=r"one int64 class"):
        engine(DGL()).evaluate([(images, soft)])


@pytest.mark.parametrize("setting", ["label_smoothing", "mixup", "cutmix"])
def test_settings_that_make_soft_labels_are_refused_with_a_contrastive_loss(tmp_path, capsys, setting):
    words = ["--data.name", "synthetic", "--method.name", "infopro", "--method.loss", "contrastive"]
    words += [f"--train.{setting}", "0.2", "--train.device", "cpu", "--run.folder", str(tmp_path / "run")]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert f"train.{setting} = 0.2 makes soft labels, but the loss" in said
    assert f"set train.{setting} = 0, or method.loss = 'softmax'" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [2, 5, 6])
def test_a_run_of_the_modern_recipe_that_is_stopped_ends_with_the_same_bits(tmp_path, monkeypatch, step):
    """Its parts: soft labels, mixed images, an average of the weights. An epoch has five steps."""
    modern = {"train__label_smoothing": "0.1", "train__mixup": "0.2", "train__cutmix": "1", "train__average": "0.9"}
    assert config(**modern).train.mixup == 0.2
    assert start(tmp_path / "whole", **modern) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert start(tmp_path / "cut", **modern) == 143
    assert resume(tmp_path / "cut") == 0
    assert same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
    assert start(tmp_path / "plain") == 0
    weights = {key: value for key, value in final_state(tmp_path / "plain") if key.startswith(".engine.backbone")}
    mixed = {key: value for key, value in final_state(tmp_path / "whole") if key.startswith(".engine.backbone")}
    assert any(not torch.equal(mixed[key], value) for key, value in weights.items()), "mixing changed nothing"
