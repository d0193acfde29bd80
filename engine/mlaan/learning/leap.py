"""Leap networks: trainable copies of later backbone blocks, joined with an EMA twin (MLAAN's LAM)."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlaan.learning.heads import halve
from mlaan.learning.published import PUBLISHED_LEAPS
from mlaan.models import Backbone, Block, on_meta


class LeapNetwork(nn.Module):
    """A_i and d_i of MLAAN: a_1 = Leap_1(z) + Ema_1(z); a_t = Leap_t(a_{t-1}) (+ Ema_t); then the head.

    Args:
        blocks: the leap blocks, in order.
        twins: for each block its twin or None.
        head: what follows the last block, such as pool and linear.
        pooled: average z 2 x 2 first (ours): a quarter of the work.
        live: the blocks are the backbone's own (ours): they are run, not trained, and not owned.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        twins: Sequence[nn.Module | None],
        head: nn.Module,
        *,
        pooled: bool = False,
        live: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(() if live else blocks)
        self.borrowed = tuple(blocks) if live else ()
        """Modules that are run here and owned elsewhere: a tuple, so that they are no submodules."""
        self.twins = nn.ModuleDict({str(i): twin for i, twin in enumerate(twins) if twin is not None})
        self.head = head
        self.pooled = pooled

    def forward(self, z: Tensor) -> Any:
        """(N, C, H, W) or (N, T, C) at the tapped module -> the head's output.

        The gradient flows through twins and live blocks to z.
        """
        return self.head(self.features(z))

    def features(self, z: Tensor) -> Tensor:
        """What the head reads."""
        z = halve(z) if self.pooled else z
        for i, block in enumerate(self.borrowed or self.blocks):
            a = block(z)
            z = a + self.twins[str(i)](z) if str(i) in self.twins else a
        return z

    def features_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of `features` for one z of `shape`, both without the batch dimension.

        Raises:
            RuntimeError: the blocks do not take such features, or not each other's.
        """
        weights = nn.ModuleList([self, *self.borrowed]).parameters()
        dtype = next((weight.dtype for weight in weights), torch.get_default_dtype())
        z = torch.empty(2, *shape, device="meta", dtype=dtype)
        return tuple(cast(LeapNetwork, on_meta(self)).features(z).shape[1:])


def leap_sources(backbone: Backbone, modules: int, last: Block) -> list[Block]:
    """The backbone blocks whose copies make the leap network of the module that ends with block `last`.

    The published table where there is one for this backbone and number of modules and it knows a module that ends
    there, else the rule. Empty where no later block is left to copy.
    """
    if last is backbone.blocks[-1]:
        return []
    table = PUBLISHED_LEAPS.get((backbone.name, modules), {})
    labels = table.get(last.label, table.get(str(last.stage), "")).split()
    by_label = {block.label: block for block in backbone.blocks}
    if not labels or not by_label.keys() >= set(labels):  # another net may go by the published one's name
        return leap_rule(backbone, last)
    return [by_label[label] for label in labels]


def leap_rule(backbone: Backbone, last: Block) -> list[Block]:
    """The rule behind the tables: the first block of each remaining stage, then interior blocks of the last stage
    (two where it is the only one that remains, else one), then its last block. Inside the last stage: the next two
    blocks, then the last.
    """
    final = [block for block in backbone.blocks if block.stage == backbone.blocks[-1].stage]
    if last.stage == final[-1].stage:
        later = [block for block in final if block.index > last.index]
        return later[:2] + later[2:][-1:]
    firsts = [block for block in backbone.blocks if block.stage > last.stage and block.index == 0]
    wanted = 2 if len(firsts) == 1 else 1
    start = max(1, min(2, len(final) - 1 - wanted))
    interior = final[start : min(start + wanted, len(final) - 1)]
    return firsts + interior + final[-1:] if len(final) > 1 else firsts


def short_leap(backbone: Backbone, last: Block) -> list[Block]:
    """Ours: the first block of each remaining stage, then the last block of all."""
    final = backbone.blocks[-1]
    firsts = [block for block in backbone.blocks if block.stage > last.stage and block.index == 0]
    return [*firsts, *([final] if final not in (last, *firsts) else [])]


def copy_block(source: nn.Module, *, trainable: bool) -> nn.Module:
    """A copy of a block for a leap network: same weights, batch statistics always, no running statistics.

    Leap blocks and twins are never evaluated, so running statistics would be memory and time for nothing.
    """
    return _without_statistics(copy.deepcopy(source)).requires_grad_(trainable)


def live_block(source: nn.Module) -> nn.Module:
    """A view of a block for a live leap: the very same weights, batch statistics, nothing that a pass would move."""
    weights: dict[int, Any] = {id(weight): weight for weight in source.parameters()}
    return _without_statistics(copy.deepcopy(source, weights))


def _without_statistics(block: nn.Module) -> nn.Module:
    for module in block.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return block


def initialise(block: nn.Module) -> nn.Module:
    """Draw a block's weights anew: He-normal convolutions (fan out), all other layers as PyTorch starts them.

    A weight outside PyTorch's layers, such as ConvNeXt's layer scale, stays.
    """
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            module._reset_parameters()
        elif hasattr(module, "reset_parameters"):
            cast(Any, module).reset_parameters()
    return block
