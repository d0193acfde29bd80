"""SGD and LAMB by NVIDIA's apex, which is imported only where it is asked for."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlaan.config import LAMBConfig, OptimConfig, SGDConfig
from mlaan.errors import UserError
from mlaan.optim.by_torch import ready_grads, round_masters, twins_first
from mlaan.optim.rules import Moving, excluded

INSTALL = (
    "git clone https://github.com/NVIDIA/apex, then in it "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation . (PyPI's package apex is another project)"
)


class ApexRule:
    """apex.optimizers.FusedSGD and FusedLAMB over states that the caller holds; learning rate and steps from the CPU.

    Raises:
        UserError: apex is not installed, or does not take such weights.
    """

    on_device = False

    def __init__(self, config: OptimConfig, weights: Sequence[Tensor]) -> None:
        assert isinstance(config, SGDConfig | LAMBConfig), config
        check_weights(weights)
        try:
            self.classes: Any = importlib.import_module("apex.optimizers")
            importlib.import_module("amp_C")
        except ImportError as error:
            raise UserError(
                f"optim.backend = 'apex' needs NVIDIA's apex with its CUDA extensions ({error}): {INSTALL}; or set "
                "optim.backend = 'native'"
            ) from error
        self.config = config
        self._made: dict[tuple[int, ...], list[Any]] = {}

    def __call__(self, moving: Moving) -> None:
        """See `mlaan.optim.rules.Rule`."""
        twins_first(moving)
        changed = [*moving.targets, *(state for states in moving.states for state in states)]
        before = None if moving.finite is None else [tensor.detach().clone() for tensor in changed]
        for weight, grad in zip(moving.targets, ready_grads(moving), strict=True):
            weight.grad = grad
        for optimizer in self._optimizers(moving):
            group = optimizer.param_groups[0]
            group["lr"] = moving.learning_rate
            if moving.step is not None:
                group["step"] = int(moving.step) - 1  # it is on the CPU
            optimizer.step()
        for weight in moving.targets:
            weight.grad = None
        if before is not None and moving.finite is not None:
            for tensor, old in zip(changed, before, strict=True):
                torch.where(moving.finite, tensor, old, out=tensor)
        round_masters(moving)

    def _optimizers(self, moving: Moving) -> list[Any]:
        """apex's objects for exactly these weights; they know their states' tensors, which never change place."""
        key = tuple(id(weight) for weight in moving.targets)
        if key not in self._made:
            self._made[key] = self._make(moving)
        return self._made[key]

    def _make(self, moving: Moving) -> list[Any]:
        config, weights = self.config, list(moving.targets)
        if isinstance(config, SGDConfig):
            names = ("momentum_buffer",)
            made = [
                self.classes.FusedSGD(
                    weights,
                    lr=0.0,
                    momentum=config.momentum,
                    weight_decay=config.weight_decay,
                    nesterov=config.nesterov,
                )
            ]
        else:
            names = ("exp_avg", "exp_avg_sq")
            # "nvlamb" gives every weight of an object its trust ratio, also where the decay is 0. apex would clip by
            # itself, by the norm of one object's gradients: an endless norm keeps it from that.
            made = [
                self.classes.FusedLAMB(
                    some,
                    lr=0.0,
                    betas=config.betas,
                    eps=config.epsilon,
                    weight_decay=0.0 if bare else config.weight_decay,
                    max_grad_norm=float("inf"),
                    use_nvlamb=not bare,
                )
                for bare in (False, True)
                if (some := [weight for weight in weights if excluded(weight) == bare])
            ]
        states = dict(zip(weights, zip(*moving.states, strict=True), strict=True)) if moving.states else {}
        for optimizer in made:
            for weight in optimizer.param_groups[0]["params"]:
                if weight in states:
                    optimizer.state[weight] = dict(zip(names, states[weight], strict=True))
        return made


def check_weights(weights: Sequence[Tensor]) -> None:
    """Raises UserError for the first weight that apex's kernels do not take."""
    for weight in weights:
        if weight.device.type != "cuda":
            raise UserError(
                f"optim.backend = 'apex' runs on NVIDIA GPUs, and the weights are on {weight.device}: set "
                "train.device = 'cuda', or optim.backend = 'native'"
            )
        if weight.dtype not in (torch.float32, torch.bfloat16):
            raise UserError(
                f"optim.backend = 'apex' takes float32 weights, or bfloat16 ones with masters, not {weight.dtype}: set "
                "optim.backend = 'native'"
            )
