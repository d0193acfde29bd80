"""What a forward pass moves besides activations, and how a recomputation leaves it alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlaan.errors import UserError


class ModuleState:
    """Running statistics, counters and other buffers of one local module.

    Args:
        module: the local module.
        moves: for a submodule, how many times one forward moves the running statistics below it; once where it is
            not named. n moves with momentum m by the same batch statistics are one with 1 - (1 - m)^n.

    Raises:
        UserError: several moves are asked of a BatchNorm with a cumulative average (momentum None).
    """

    def __init__(self, module: nn.Module, moves: Mapping[nn.Module, int] | None = None) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        tracked = {id(buffer) for norm in self.norms for buffer in norm.buffers(recurse=False)}
        self.others = [buffer for buffer in module.buffers() if id(buffer) not in tracked]
        self.repeated: list[tuple[_BatchNorm, float, int]] = []
        for part, count in (moves or {}).items():
            for norm in (m for m in part.modules() if isinstance(m, _BatchNorm) and m.track_running_stats):
                if count == 1:
                    continue
                if norm.momentum is None:
                    raise UserError(
                        "momentum = None of a BatchNorm cannot be moved several times a step: give a number"
                    )
                self.repeated.append((norm, 1 - (1 - norm.momentum) ** count, count - 1))

    @contextmanager
    def moving(self) -> Iterator[None]:
        """A forward that moves the statistics as often as the supervision says."""
        usual = [norm.momentum for norm, _, _ in self.repeated]
        for norm, momentum, _ in self.repeated:
            norm.momentum = momentum
        try:
            yield
        finally:
            for (norm, _, extra), momentum in zip(self.repeated, usual, strict=True):
                norm.momentum = momentum
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked += extra

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A forward that moves nothing: batch statistics are used, running ones and all other buffers stay."""
        before = [buffer.clone() for buffer in self.others]
        for norm in self.norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in self.norms:
                norm.track_running_stats = True
            for buffer, value in zip(self.others, before, strict=True):
                # .data: the restored values are the very ones that autograd may have saved
                buffer.data.copy_(value)


class RandomState:
    """The random state at a module's forward, so that a rebuild draws the same dropout masks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def has_moved(self) -> bool:
        """Whether random numbers were drawn since."""
        moved = not torch.equal(self.cpu, torch.get_rng_state())
        return moved or (self.cuda is not None and not torch.equal(self.cuda, torch.cuda.get_rng_state(self.device)))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Random numbers as of then inside the block; afterwards as if nothing had been drawn."""
        devices = [self.device] if self.cuda is not None else []
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
