"""Copies without storage, for shapes and costs."""

import copy

import torch
from torch import nn


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of `module` on the meta device: the same structure and shapes, no memory, no arithmetic."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)
