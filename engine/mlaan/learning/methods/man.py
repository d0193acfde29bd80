"""MAN (Su et al., ECCV 2024) and MAN++ (TPAMI 2026): every head looks through the next module's first block."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.base import BaseName, base_named
from mlaan.learning.leap import LeapNetwork, copy_block
from mlaan.learning.site import Site
from mlaan.learning.supervision import LocalLoss, Supervision, Twin


@dataclass(frozen=True)
class MAN(MethodConfig, name="man"):
    """MAN: before a module's head stand a copy of the next module's first block and an average of that block.

    min over theta_i, b_i, c_i of L(c_i(b_i(z) + e_i(z)), y),  z = f_i(sg h_{i-1}), for every module i: reach 1.
    b_i: a trainable copy of the first block of module i+1. e_i: the block's exponential moving average, whose
    parameters get no gradient: phi <- mu phi + (1 - mu) theta with the weights before the step, mu = 0.995. c_i and L:
    those of `base`.

    MAN++ (`scale`): L(c_i(s_i b_i(z) + (2 - s_i) e_i(z)), y), with one trained number s_i per module that starts at 1.

    Both as in the authors' code (JunhaoSu0/MAN, MAN_PlusPlus); but there block, copy and average are drawn separately,
    MAN++ has one more head right after the stem, and its ViT a second trainable block. The last module has CE on the
    backbone's own classifier. Copies normalise with batch statistics.
    """

    base: BaseName = setting("dgl", "auxiliary classifier and loss: light (pool + linear), or those of a method")
    scale: bool = setting(False, "MAN++: weigh copy and average by s and 2 - s, s trained")
    ema: float = setting(0.995, "mu, share of its old value that an average keeps in a step")

    def __post_init__(self) -> None:
        if not 0 <= self.ema <= 1:
            raise UserError(f"method.ema = {self.ema} must be from 0 to 1")

    def supervise(self, site: Site) -> Supervision:
        """A loss of reach 1 and a twin per module, on the backbone's own classifier at the last."""
        base = base_named(self.base)
        losses, twins = [], []
        for i, start in enumerate(site.partition.starts[1:]):
            source = site.backbone.blocks[start].module
            copy, twin = copy_block(source, trainable=True), copy_block(source, trainable=False)
            head, criterion, predicts = base.auxiliary(site, i, site.shapes[start])
            network = (ScaledNetwork if self.scale else LeapNetwork)([copy], [twin], head)
            losses.append(LocalLoss(i, network, kind="local", criterion=criterion, predicts=predicts))
            twins.append(Twin(twin, source, self.ema))
        last = LocalLoss(site.modules - 1, site.backbone.classifier, kind="classifier")
        return Supervision((*losses, last), tuple(twins))


class ScaledNetwork(LeapNetwork):
    """MAN++: s b(z) + (2 - s) e(z), then the head."""

    def __init__(self, blocks: list[nn.Module], twins: list[nn.Module], head: nn.Module) -> None:
        super().__init__(blocks, twins, head)
        self.scale = nn.Parameter(torch.ones(()))

    def features(self, z: Tensor) -> Tensor:
        """What the head reads."""
        return self.scale * self.blocks[0](z) + (2 - self.scale) * self.twins["0"](z)
