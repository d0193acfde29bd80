"""HPFF (Su et al., ECCV 2024): independent and cascaded local losses on fused patches of the features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.base import Auxiliary, Base, BaseName, base_named
from mlaan.learning.heads import as_map, map_shape
from mlaan.learning.methods.infopro import InfoPro
from mlaan.learning.site import Site
from mlaan.learning.supervision import LocalLoss, Supervision
from mlaan_kernels.patch_mean import patch_mean


@dataclass(frozen=True)
class HPFF(MethodConfig, name="hpff"):
    """HPFF: an independent and a cascaded loss on every module, whose heads read the average of the output's patches.

    For every module i: w_x L(c_i(P(f_i(sg h_{i-1}))), y) + w_y L(d_i(P(f_i(f_{i-1}(sg h_{i-2})))), y), reach 1 and 2.
    P cuts a map into n x n patches and averages them (patch feature fusion); c_i, d_i and L are those of `base`. The
    last module has CE on the backbone's own classifier, reach 2.

    From the authors' code (Zeudfish/HPFF): w_x = 0.001, w_y = 0.999, n = 2. That code has InfoPro as its base and fuses
    in the decoder alone: one for each patch of features and image, their losses added up, the classifier on the whole
    map, and no decoder in the independent loss. So it is here with base = "infopro"; with the others P is as the paper
    words it. As in MLAAN's preset `paper` module 0 has its losses too, and the classifier one of weight 1.
    """

    base: BaseName = setting("dgl", "auxiliary classifier and loss: light (pool + linear), or those of a method")
    patches: int = setting(2, "n, patches along each side; 1 reads the features as they are")
    reach: int = setting(
        2, "modules that a cascaded loss reaches back through, its own included; more than there are: all"
    )
    independent_weight: float = setting(0.001, "w_x, weight of the independent losses")
    cascaded_weight: float = setting(0.999, "w_y, weight of the cascaded losses")

    def __post_init__(self) -> None:
        for name in ("patches", "reach"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name} = {getattr(self, name)} must be at least 1")
        if min(self.independent_weight, self.cascaded_weight) < 0:
            raise UserError("method.independent_weight and method.cascaded_weight must not be negative")

    def supervise(self, site: Site) -> Supervision:
        """The independent losses, where they have weight, and the cascaded ones."""
        independent, cascaded = self._bases()
        losses: list[LocalLoss] = []
        for i, shape in enumerate(site.outputs[:-1]):
            if self.independent_weight:
                head, criterion, predicts = independent.auxiliary(site, i, shape)
                losses.append(LocalLoss(i, head, 1, self.independent_weight, "independent", criterion, predicts))
            head, criterion, predicts = cascaded.auxiliary(site, i, shape)
            reach = min(self.reach, i + 1)
            losses.append(LocalLoss(i, head, reach, self.cascaded_weight, "cascaded", criterion, predicts))
        reach = min(self.reach, site.modules)
        last = LocalLoss(site.modules - 1, site.backbone.classifier, reach, kind="classifier")
        return Supervision((*losses, last))

    def _bases(self) -> tuple[Base, Base]:
        """What builds the independent and the cascaded heads."""
        if self.base == "infopro":
            label_alone = InfoPro(first_reconstruction=0, last_reconstruction=0, first_label=1, last_label=1)
            return label_alone, InfoPro(patches=self.patches)
        base = base_named(self.base)
        fused = base if self.patches == 1 else Fused(base, self.patches)
        return fused, fused


@dataclass(frozen=True)
class Fused:
    """A base whose heads read fused patches."""

    base: Base
    patches: int

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """See Base."""
        head, criterion, predicts = self.base.auxiliary(site, module, fused_shape(shape, self.patches))
        return Auxiliary(FusedHead(head, self.patches), criterion, predicts)


class FusedHead(nn.Module):
    """A head on the average of the features' patches."""

    def __init__(self, head: nn.Module, patches: int) -> None:
        super().__init__()
        self.head, self.patches = head, patches

    def forward(self, h: Tensor) -> Any:
        """(N, C, H, W) or (N, T, C) -> the head's output."""
        return self.head(fuse(h, self.patches))


def fuse(h: Tensor, patches: int) -> Tensor:
    """Average of a map's patches x patches parts, (N, C, H, W) -> (N, C, ceil(H / patches), ceil(W / patches)).

    Where a side does not divide, neighbouring parts overlap. Tokens (N, T, C) are fused as the map they are and stay
    tokens; a class token stays in front.
    """
    image = as_map(h)
    fused = patch_mean(image, patches)
    if h.ndim == 4:
        return fused
    others = h.shape[1] - image.shape[2] * image.shape[3]
    return torch.cat([h[:, :others], fused.flatten(2).transpose(1, 2)], 1)


def fused_shape(shape: Sequence[int], patches: int) -> tuple[int, ...]:
    """Shape of `fuse` for features of `shape`, (C, H, W) or (T, C)."""
    channels, height, width = map_shape(shape)
    small = (-(-height // patches), -(-width // patches))
    if len(shape) == 3:
        return channels, *small
    return shape[0] - height * width + small[0] * small[1], channels
