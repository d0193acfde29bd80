"""Which kernels a run uses."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from mlaan.errors import UserError
from mlaan.execute.compiled import CompiledModule
from mlaan.execute.fused import FusedModule
from mlaan.execute.module import Autocast, AutogradModule, ModuleWork
from mlaan.execute.precision import AUTOCAST
from mlaan_kernels.blocks import Settings
from mlaan_kernels.choice import triton_obstacle

Kernels = Literal["reference", "triton"]


def choose_kernels(wanted: str, weight: Tensor, precision: str) -> Kernels:
    """What `train.kernels` comes to for a model with such weights.

    "auto" is Triton on a GPU that its kernels serve, else the reference; where a GPU is there and they cannot, a
    RuntimeWarning says what is lost. A model on the meta device is taken for one on this machine's GPU.

    Raises:
        UserError: "triton" is insisted on and cannot be had.
    """
    dtype = AUTOCAST.get(precision, weight.dtype)
    device = weight.device
    if device.type == "meta":  # only planned: for this machine's GPU, or for the one that "triton" is asked for
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wanted = "reference" if wanted == "auto" and device.type == "cpu" else wanted
        if wanted == "triton":
            return "triton"
    if wanted == "reference":
        return "reference"
    obstacle = triton_obstacle(device, dtype)
    if wanted == "triton":
        if obstacle:
            raise UserError(
                f"train.kernels = 'triton' cannot be had on {device}: {obstacle}; 'auto' takes PyTorch's own"
            )
        return "triton"
    if device.type == "cuda" and obstacle:
        warnings.warn(
            f"PyTorch's own kernels run instead of the fused ones, slower and with more memory: {obstacle}",
            RuntimeWarning,
            stacklevel=2,
        )
    return "reference" if obstacle or device.type != "cuda" else "triton"


def make_work(
    modules: Sequence[nn.Sequential],
    settings: Settings | None,
    autocast: Autocast = nullcontext,
    *,
    asked: bool = False,
    compiled: bool = False,
) -> list[ModuleWork]:
    """The modules' work: fused where `settings` are given, over autograd without.

    Args:
        asked: fused blocks were asked for by name: a RuntimeWarning says which parts have no fused form.
        compiled: what runs over autograd is compiled by torch.compile.
    """
    over_autograd = CompiledModule if compiled else AutogradModule
    if settings is None:
        return [over_autograd(module, autocast) for module in modules]
    work = [FusedModule(module, settings, autocast, over_autograd) for module in modules]
    plain = [part for one in work for part in one.plain]
    if asked and plain:
        kinds = ", ".join(sorted({type(part).__name__ for part in plain}))
        total = sum(len(module) for module in modules)
        warnings.warn(
            f"{len(plain)} of {total} parts of the network have no fused form ({kinds}): PyTorch's own kernels run "
            "them and keep all activations; memory.recompute = 'once' saves memory there",
            RuntimeWarning,
            stacklevel=2,
        )
    return [*work]
