"""Copies without storage, for shapes and costs."""

import copy
from collections.abc import Iterator

import torch
from torch import nn


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of `module` on the meta device: the same structure and shapes, no memory, no arithmetic."""
    memo: dict[int, object] = {}
    parts = nn.ModuleList([module, *borrowed(module)])
    for parameter in parts.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in parts.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def borrowed(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that `module` or one in it runs without owning them: those in a tuple attribute `borrowed`."""
    for part in module.modules():
        yield from getattr(part, "borrowed", ())
