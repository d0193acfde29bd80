"""Every method on the nets that it is meant for: a step's losses and gradients are those of its plain definition."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from exact.definitions_nets import RESNET32, RESNET50, VIT_S, differences, make_trial
from mlaan import LocalLoss, Supervision
from mlaan.config import MethodConfig
from mlaan.learning import criteria, leap
from mlaan.learning.decoder import cut_patches
from mlaan.learning.leap import copy_block, initialise
from mlaan.learning.methods import (
    DGL,
    HPFF,
    MAN,
    MLAAN,
    AugLocal,
    BackLink,
    EndToEnd,
    InfoPro,
    PredSim,
    auglocal,
    hpff,
    infopro,
    man,
    mlaan,
)  # fmt: skip
from mlaan_kernels.contrast_loss import contrast_loss
from mlaan_kernels.similarity_loss import reference as similarity

EXACT, CLEARLY = 1e-9, 1e-4

METHODS: dict[str, MethodConfig] = {
    "end_to_end": EndToEnd(),
    "dgl": DGL(),
    "predsim": PredSim(),
    "infopro": InfoPro(),
    "infopro-contrastive": InfoPro(loss="contrastive"),
    "backlink": BackLink(),
    "auglocal": AugLocal(),
    "man": MAN(),
    "man++": MAN(scale=True),
    "hpff": HPFF(),
    "mlaan": MLAAN(),
    "mlaan-reach3": MLAAN(reach=3),
    "mlaan-fast": MLAAN(preset="fast"),
    "mlaan-live": MLAAN(leap="live"),
}
VARIANTS: dict[str, MethodConfig] = METHODS | {
    "dgl-light": DGL(head="light"),
    "infopro-patches": InfoPro(patches=2),
    "backlink-predsim": BackLink(reach=3, base="predsim"),
    "auglocal-deep": AugLocal(depth=4, coefficient=1.0),
    "man-infopro": MAN(base="infopro"),
    "man-auglocal": MAN(base="auglocal"),
    "hpff-infopro": HPFF(base="infopro"),
    "hpff-auglocal": HPFF(base="auglocal", reach=3),
    "hpff-whole-maps": HPFF(independent_weight=0.0, patches=1),
    "mlaan-light": MLAAN(preset="light"),
    "mlaan-authors": MLAAN(preset="authors"),
    "mlaan-mlm": MLAAN(lam=False),
    "mlaan-lam": MLAAN(mlm=False),
    "mlaan-cascaded-alone": MLAAN(independent_weight=0.0, twins="none"),
    "mlaan-dgl": MLAAN(base="dgl"),
    "mlaan-predsim": MLAAN(base="predsim"),
    "mlaan-infopro": MLAAN(base="infopro"),
    "mlaan-auglocal": MLAAN(base="auglocal"),
    "mlaan-stage": MLAAN(leap="stage"),
    "mlaan-stage-twins": MLAAN(leap="stage", twins="all", reach=3),
    "mlaan-pooled": MLAAN(pooled=True),
    "mlaan-short": MLAAN(depth="short"),
    "mlaan-live-pooled-short": MLAAN(leap="live", pooled=True, depth="short", twins="none"),
}
BIG = [name for name in METHODS if name not in ("mlaan-reach3", "man++", "infopro-contrastive")]
SOFT = [*(name for name in METHODS if name != "infopro-contrastive"), "mlaan-light", "mlaan-predsim", "mlaan-infopro"]
"""Contrast must know which images are of one class."""
SCHEDULES = [
    {"schedule": "full"},
    {"schedule": "windowed", "window": 4},
    {"recompute": "once"},
]


def worst(net: Any, method: MethodConfig, samples: int = 4, **options: Any) -> tuple[float, str]:
    """The largest difference from the definition and where it is."""
    found = differences(make_trial(net, method, samples, **options))
    return max((gap, name) for name, gap in found.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_resnet32(name):
    assert worst(RESNET32, VARIANTS[name]) < (EXACT,)


@pytest.mark.parametrize("name", SOFT)
def test_probabilities_in_place_of_labels(name):
    assert worst(RESNET32, VARIANTS[name], soft=True) < (EXACT,)


@pytest.mark.parametrize("name", [*BIG, "mlaan-authors"])
def test_resnet50(name):
    assert worst(RESNET50, VARIANTS[name], 3) < (EXACT,)


@pytest.mark.parametrize("name", [*BIG, "mlaan-pooled"])
def test_vit(name):
    """All methods take its tokens: 4 x 4 patches and a class token."""
    assert worst(VIT_S, VARIANTS[name]) < (EXACT,)


@pytest.mark.parametrize("memory", SCHEDULES, ids=lambda memory: memory.get("schedule", "lean-once"))
@pytest.mark.parametrize("name", ["mlaan-stage-twins", "mlaan-fast", "hpff-infopro", "backlink-predsim"])
def test_every_schedule(name, memory):
    assert worst(RESNET32, VARIANTS[name], **memory) < (EXACT,)


def change_losses(patch: pytest.MonkeyPatch, kind: type, change: Callable[[LocalLoss], LocalLoss]) -> None:
    """Change the sixth loss, of the third module in MLAAN."""
    supervise = kind.supervise

    def wrong(self: Any, site: Any) -> Supervision:
        right = supervise(self, site)
        losses = list(right.losses)
        losses[5] = change(losses[5])
        return replace(right, losses=tuple(losses))

    patch.setattr(kind, "supervise", wrong)


def without_the_twins_gradient(self, z):
    for i, block in enumerate(self.blocks):
        twin = self.twins[str(i)](z.detach()) if str(i) in self.twins else 0
        z = block(z) + twin
    return z


def without_their_mean(rows):
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def scaled_by_one_less(self, z):
    return self.scale * self.blocks[0](z) + (1 - self.scale) * self.twins["0"](z)


PLANTS = {
    "reach_too_long": ("mlaan", lambda p: change_losses(p, MLAAN, lambda x: replace(x, reach=x.reach + 1))),
    "reach_too_short": ("mlaan", lambda p: change_losses(p, MLAAN, lambda x: replace(x, reach=x.reach - 1))),
    "reach_of_backlink": ("backlink", lambda p: change_losses(p, BackLink, lambda x: replace(x, reach=1))),
    "weights_swapped": ("mlaan", lambda p: change_losses(p, MLAAN, lambda x: replace(x, weight=0.001))),
    "similarity_not_centred": ("predsim", lambda p: p.setattr(similarity, "_directions", without_their_mean)),
    "twins_gradient_cut": ("mlaan", lambda p: p.setattr(leap.LeapNetwork, "features", without_the_twins_gradient)),
    "lambda_constant": ("infopro", lambda p: p.setattr(InfoPro, "weights", lambda self, module, modules: (5.0, 0.05))),
    "normalised_images": ("infopro", lambda p: p.setattr(criteria, "unnormalised", lambda x, _: x.clamp(0, 1))),
    "another_temperature": ("infopro-contrastive", lambda p: p.setattr(
        infopro, "contrast_loss", lambda z, y, t: contrast_loss(z, y, 1.01 * t))),
    "one_patch": ("hpff", lambda p: p.setattr(hpff, "patch_mean", lambda h, n: cut_patches(h, n)[0])),
    "scale": ("man++", lambda p: p.setattr(man.ScaledNetwork, "features", scaled_by_one_less)),
    "pooled_by_the_corner": ("mlaan-pooled", lambda p: p.setattr(leap, "halve", lambda h: h[:, :, ::2, ::2])),
}  # fmt: skip
ORIGINS = {
    "leap_rule_for_the_table": ("mlaan", mlaan, "leap_sources", lambda net, k, last: leap.leap_rule(net, last)),
    "auglocals_blocks_copied": ("auglocal", auglocal, "initialise", lambda block: block),
    "leap_blocks_drawn_anew": ("mlaan", mlaan, "copy_block", lambda block, **kw: initialise(copy_block(block, **kw))),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_seen(monkeypatch, plant):
    name, bug = PLANTS[plant]
    bug(monkeypatch)
    gap, _ = worst(RESNET32, VARIANTS[name])
    assert gap > CLEARLY


@pytest.mark.parametrize("plant", ORIGINS)
def test_blocks_of_another_origin_are_seen(monkeypatch, plant):
    name, *where = ORIGINS[plant]
    monkeypatch.setattr(*where)
    with pytest.raises(AssertionError):
        worst(RESNET32, VARIANTS[name])
