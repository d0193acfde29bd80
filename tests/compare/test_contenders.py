"""End-to-end's peak on equal terms, and its segments."""

import copy

import torch

from mlaan.compare.contenders import EndToEnd, segment_counts, step_peak, trained_weights
from mlaan.compare.measure import peak_memory
from mlaan.models import BACKBONES

BATCH = torch.randn(2, 3, 8, 8), torch.randint(10, (2,))


def test_end_to_end_peaks_hold_no_gradients_for_later():
    """Weights that move in the backward end where those of an ordinary step end, at a lower peak."""
    torch.manual_seed(0)
    ordinary = EndToEnd(BACKBONES["resnet20"](10, 3))
    early = EndToEnd(copy.deepcopy(ordinary.backbone))
    for contender in (ordinary, early):
        contender.step(*BATCH)
    for weight in ordinary.trained:
        weight.grad = None
    plain = peak_memory(lambda: ordinary.step(*BATCH), torch.device("cpu"))
    assert step_peak(early, BATCH) < 0.8 * plain
    for a, b in zip(ordinary.net.parameters(), early.net.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    for contender in (ordinary, early):  # and the hooks are gone
        contender.step(*BATCH)
    for a, b in zip(ordinary.net.parameters(), early.net.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_frozen_weights_stay_and_do_not_count():
    backbone = BACKBONES["resnet20"](10, 3)
    frozen = next(backbone.net.parameters()).requires_grad_(False)
    before = frozen.clone()
    contender = EndToEnd(backbone)
    contender.step(*BATCH)
    assert step_peak(contender, BATCH) > 0
    assert torch.equal(frozen, before)
    assert len(trained_weights(contender)) == len(list(backbone.net.parameters())) - 1


def test_segments_are_tried_up_to_the_blocks():
    assert segment_counts(1) == []
    assert segment_counts(2) == [2]
    assert segment_counts(9) == [2, 3, 4, 5, 6, 8, 9]
    assert segment_counts(54)[-2:] == [12, 54]
