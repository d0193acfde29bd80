"""Leap networks: trainable copies of later backbone blocks, joined with an EMA twin (MLAAN's LAM)."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlaan.learning.published import PUBLISHED_LEAPS
from mlaan.models import Backbone, Block


class LeapNetwork(nn.Module):
    """A_i and d_i of MLAAN: a_1 = Leap_1(z) + Ema_1(z); a_t = Leap_t(a_{t-1}) (+ Ema_t); then pool and linear.

    Args:
        blocks: the trainable copies, in order.
        twins: for each block its twin or None.
        head: maps the last block's output to logits.
    """

    def __init__(self, blocks: Sequence[nn.Module], twins: Sequence[nn.Module | None], head: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.twins = nn.ModuleDict({str(i): twin for i, twin in enumerate(twins) if twin is not None})
        self.head = head

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, H, W) at the tapped module -> logits (N, classes). The gradient flows through the twin to z."""
        for i, block in enumerate(self.blocks):
            a = block(z)
            z = a + self.twins[str(i)](z) if str(i) in self.twins else a
        return self.head(z)


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


def copy_block(source: nn.Module, *, trainable: bool) -> nn.Module:
    """A copy of a block for a leap network: same weights, batch statistics always, no running statistics.

    Leap blocks and twins are never evaluated, so running statistics would be memory and time for nothing.
    """
    twin = copy.deepcopy(source).requires_grad_(trainable)
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return twin


def initialise(block: nn.Module) -> nn.Module:
    """Draw a block's weights anew: He-normal convolutions (fan out), BatchNorm 1 and 0, PyTorch's linear layers."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm | nn.Linear):
            module.reset_parameters()
    return block
