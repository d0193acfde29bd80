"""AugLocal (Ma, Wu, Si, Tan, ICLR 2024): auxiliary networks built like the later layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.base import Auxiliary, Light, channels, local_losses
from mlaan.learning.leap import LeapNetwork, copy_block, initialise
from mlaan.learning.site import Site
from mlaan.learning.supervision import Supervision


@dataclass(frozen=True)
class AugLocal(MethodConfig, name="auglocal"):
    """AugLocal: every module has d blocks shaped like later ones, with weights of their own, then pool and linear.

    min over theta_i, A_i of CE(A_i(f_i(sg h_{i-1})), y) for every module i: reach 1. From the authors' code
    (ChenxiangMA/AugLocal), for a module that ends with block l of n (both counted from 1):

        d_i = max(1, round(d (1 - c t) + c t)),  t from 0 at the first module to 1 at the last but one
        blocks: round(l + (n - l) / d_i * j) for j = 1 ... d_i, or all later ones where there are no more than d_i

    They build every block anew and give it the channels that come in. Here blocks are copies with fresh weights, so
    that any backbone's will do, and they have to chain: where a sampled block lies behind changes of shape, the blocks
    that make these changes stand in its place (the first block of the next stage: the very shape that theirs has). A
    leap over two stages or more so has a block for each of them, which with d of 1 or 2 may be more than d.

    At depth 1 their CIFAR code has a BatchNorm before the linear layer, left out here. Blocks use batch statistics.
    """

    depth: int = setting(2, "d, blocks of the first module's auxiliary network")
    coefficient: float = setting(0.5, "c, 0 to 1: how far the depth falls towards 1 at the last auxiliary network")

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"method.depth = {self.depth} must be at least 1; 'dgl' has heads without blocks")
        if not 0 <= self.coefficient <= 1:
            raise UserError(f"method.coefficient = {self.coefficient} must be from 0 to 1")

    def supervise(self, site: Site) -> Supervision:
        """A loss of reach 1 per module, on the backbone's own classifier at the last."""
        return Supervision(local_losses(site, self))

    def depth_of(self, module: int, modules: int) -> int:
        """d_i of local module `module` of `modules`."""
        fall = self.coefficient * module / (modules - 2) if modules > 2 else 0.0
        return max(1, round(self.depth * (1 - fall) + fall))

    def auxiliary(self, site: Site, module: int, shape: Sequence[int]) -> Auxiliary:
        """See Base. Features of other channels than the module's output count as the first later block's that has
        as many; where no block is left behind them, pool and linear are.

        Raises:
            UserError: the blocks do not take such features, or not each other's.
        """
        end = site.partition.spans[module][1]
        alike = (b for b in range(end - 1, len(site.shapes)) if channels(site.shapes[b]) == channels(shape))
        start = next(alike, end - 1)
        places = sampled(start, len(site.shapes), self.depth_of(module, site.modules))
        if not places:
            return Light().auxiliary(site, module, shape)
        sources = [site.backbone.blocks[b].module for b in chained(start, places, site.shapes)]
        blocks = [initialise(copy_block(source, trainable=True)) for source in sources]
        network = LeapNetwork(blocks, [None] * len(blocks), nn.Identity())
        try:
            features = network.features_shape(shape)
        except RuntimeError as error:
            raise UserError(
                f"method.name = 'auglocal' cannot chain the later blocks of {site.backbone.name} behind module "
                f"{module}: choose another method, such as 'dgl' ({error})"
            ) from error
        network.head = Light().auxiliary(site, module, features).head
        return Auxiliary(network)


def sampled(last: int, blocks: int, depth: int) -> list[int]:
    """Which of `blocks` blocks are sampled behind block `last`, counted from 0: at most `depth`, evenly spread."""
    later = blocks - 1 - last
    if depth >= later:
        return list(range(last + 1, blocks))
    return [round(last + 1 + later / depth * j) - 1 for j in range(1, depth + 1)]


def chained(last: int, places: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[int]:
    """Blocks that read each other's outputs, after block `last`, in place of those sampled at `places`.

    Between two samples the blocks that change the shape, where there are any; else the later sample itself.
    """
    path = []
    for before, place in pairwise([last, *places]):
        changes = [b for b in range(before + 1, place + 1) if tuple(shapes[b]) != tuple(shapes[b - 1])]
        path += changes or [place]
    return path
