"""Which blocks can run as chains, and their chains."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from mlaan_kernels.blocks.chain import Chain, Layer, Settings

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


class _Parts(NamedTuple):
    """What a block is made of; `shortcut` is a pair, "identity" or None."""

    layers: list[Pair]
    shortcut: Pair | str | None
    pool: nn.MaxPool2d | None


def make_chain(
    blocks: nn.Module | Sequence[nn.Module], settings: Settings, *, inputs: int = 1, members: int = 1
) -> Chain | None:
    """The chain that does the work of a block, or of several alike side by side, on their own weights.

    torchvision's Bottleneck and BasicBlock, and nn.Sequential of Conv2d, BatchNorm2d, ReLU and perhaps MaxPool2d.

    Args:
        blocks: inputs * members of them; the first `members` read the first input, and so on.
        inputs: runs of channels that x has; the output has as many, each the sum of its members'.

    Returns:
        None for blocks of other kinds or with hooks; and for several that are not alike, keep running statistics or
        have groups of their own where members share an input.
    """
    blocks = [blocks] if isinstance(blocks, nn.Module) else list(blocks)
    parts = [_parts_of(block) for block in blocks]
    first = parts[0]
    if first is None or any(
        one is None or form(block) != form(blocks[0]) for one, block in zip(parts, blocks, strict=True)
    ):
        return None
    known = cast(list[_Parts], parts)
    shared = [first.layers[0], *([first.shortcut] if isinstance(first.shortcut, tuple) else [])]
    if len(blocks) > 1:
        norms = [norm for block in blocks for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)]
        grouped = members > 1 and any(conv.groups > 1 for conv, _ in shared)
        if grouped or first.pool is not None or any(norm.running_mean is not None for norm in norms):
            return None
    layers = [
        Layer([one.layers[i] for one in known], inputs if i == 0 else len(blocks)) for i in range(len(first.layers))
    ]
    shortcut = first.shortcut
    if isinstance(shortcut, tuple):
        shortcut = Layer([cast(Pair, one.shortcut) for one in known], inputs)
    return Chain(layers, shortcut, first.pool, settings, members)


def form(block: nn.Module) -> tuple[object, ...]:
    """What blocks alike have in common: the kind, and shape and settings of everything in it."""
    return type(block), *((name, repr(part)) for name, part in block.named_modules())


def _parts_of(block: nn.Module) -> _Parts | None:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(part, kind) for part in block.modules() for kind in hooks):
        return None
    if type(block) in (Bottleneck, BasicBlock):
        one, count = cast(Any, block), 3 if type(block) is Bottleneck else 2
        layers = [(getattr(one, f"conv{i}"), getattr(one, f"bn{i}")) for i in range(1, count + 1)]
        shortcut: Any = "identity"
        if one.downsample is not None:
            shortcut = tuple(one.downsample)
            if type(one.downsample) is not nn.Sequential or len(shortcut) != 2 or not _fits(*shortcut):
                return None
        fit = type(one.relu) is nn.ReLU and all(_fits(*pair) for pair in layers)
        return _Parts(layers, shortcut, None) if fit else None
    if type(block) is nn.Sequential:
        steps: list[Any] = list(block)
        pool = steps.pop() if steps and type(steps[-1]) is nn.MaxPool2d and not steps[-1].return_indices else None
        if len(steps) == 3 and type(steps[2]) is nn.ReLU and _fits(steps[0], steps[1]):
            return _Parts([(steps[0], steps[1])], None, pool)
    return None


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether the operators can do what the two do."""
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and type(norm) is nn.BatchNorm2d and norm.affine and norm.momentum is not None
