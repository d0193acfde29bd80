"""Loss scales for float16: one for each local loss, each a power of two, all on the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlaan.plan import TaskGraph

START, LARGEST, SMALLEST = 2.0**16, 2.0**24, 2.0**-14
INTERVAL = 2000
"""Steps in a row without an overflow after which a scale doubles."""


class LossScale:
    """Keeps small gradients from vanishing in float16, and steps that overflow from doing harm.

    Loss j is multiplied by s_j before its backward. Cotangents of several losses that go on together share the least of
    their scales (factors are powers of two, so that nothing is rounded); gradients of weights are divided by the scale
    as soon as they are there. A loss whose cotangent is not finite keeps every module that it reaches, their heads and
    twins, from being updated in that step, and no other. Its scale halves. Where the overflow came about in a module's
    own backward, that module is left out, and the scales of all losses that reach it halve. Losses that share a head
    share the least of their scales. Nothing here waits for the device.

    Args:
        graph: whose losses and groups these are.
        homes: for each loss the module whose Update moves its head.

    Attributes:
        scales: (L,) float32.
        clean: (L,) int32, steps since the last overflow or doubling.
        skipped: (K,) int64, how often each module's update was left out.
    """

    def __init__(self, graph: TaskGraph, homes: Sequence[int], device: torch.device, start: float = START) -> None:
        count = len(graph.heads)
        self.scales = torch.full((count,), start, device=device)
        self.clean = torch.zeros(count, dtype=torch.int32, device=device)
        self.skipped = torch.zeros(graph.modules, dtype=torch.int64, device=device)
        self._graph, self._homes = graph, homes
        self._sharing = [{k for k in range(count) if graph.heads[k] == graph.heads[j]} for j in range(count)]
        self._members = _members(graph)
        self._reached = [{j for left in graph.groups[m] for j in self._members[m, left]} for m in range(graph.modules)]
        stopped = [reached | {j for j in range(count) if homes[j] == m} for m, reached in enumerate(self._reached)]
        self.stopped_by = torch.tensor(
            [[j in some for j in range(count)] for some in stopped], dtype=torch.bool, device=device
        )
        # Row by row the losses whose least scale is wanted: each head's, each group's, each module's.
        rows = [*self._sharing, *self._members.values(), *self._reached]
        self._rows = torch.tensor([[j in some for j in range(count)] for some in rows], device=device)
        self._places: dict[Any, int] = {("head", j): j for j in range(count)}
        self._places |= {("group", *key): count + i for i, key in enumerate(self._members)}
        self._places |= {("module", m): count + len(self._members) + m for m in range(graph.modules)}

    def begin(self) -> "StepScale":
        """The scales of one step."""
        own = self.scales[: len(self._sharing)]
        heads = self._least(own, self._rows[: len(own)])
        return StepScale(self, self._least(heads, self._rows))

    def _least(self, scales: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows, scales, LARGEST).amin(1)

    def end(self, sound_heads: Tensor, sound_modules: Tensor) -> None:
        """Move the scales after a step.

        Args:
            sound_heads: (L,) bool, whether each loss's head and cotangent were finite.
            sound_modules: (K,) bool, whether each module was updated.
        """
        bad = ~sound_heads
        explained = (self.stopped_by & bad).any(1)
        own_fault = ~sound_modules & ~explained
        bad = bad | (self.stopped_by & own_fault[:, None]).any(0)
        self.clean.copy_(torch.where(bad, 0, self.clean + 1))
        grown = self.clean >= INTERVAL
        factor = torch.where(bad, 0.5, torch.where(grown, 2.0, 1.0))
        self.scales.mul_(factor).clamp_(SMALLEST, LARGEST)
        self.clean.masked_fill_(grown, 0)
        self.skipped.add_(~sound_modules)

    def tensors(self) -> tuple[Tensor, ...]:
        """What a step moves."""
        return self.scales, self.clean, self.skipped

    def state_dict(self) -> dict[str, Tensor]:
        return {"scales": self.scales, "clean": self.clean, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in self.state_dict().items():
            own.copy_(state[name])


class StepScale:
    """The scales of one step, and what was found finite in it."""

    def __init__(self, keeper: LossScale, scales: Tensor) -> None:
        self.keeper, self.graph = keeper, keeper._graph
        inverse = scales.reciprocal()
        self._scale, self._inverse = scales.unbind(), inverse.unbind()
        self.sound_heads: dict[int, Tensor] = {}
        self.sound_modules: dict[int, Tensor] = {}

    def of(self, *key: Any) -> Tensor:
        """The scale, 0-dim float32, of ("head", loss), ("group", module, left) or ("module", module)."""
        return self._scale[self.keeper._places[key]]

    def inverse(self, *key: Any) -> Tensor:
        """1 / `of`."""
        return self._inverse[self.keeper._places[key]]

    def factor(self, source: tuple[Any, ...], target: tuple[Any, ...]) -> Tensor | None:
        """What brings a cotangent from one scale to another; None where they are the same losses'."""
        if self._losses(source) == self._losses(target):
            return None
        return self.of(*target) * self.inverse(*source)

    def _losses(self, key: tuple[Any, ...]) -> frozenset[int]:
        """The losses whose least scale it is; a head's are those that share it."""
        keeper = self.keeper
        match key[0]:
            case "head":
                some = keeper._sharing[key[1]]
            case "group":
                some = keeper._members[key[1], key[2]]
            case _:
                some = keeper._reached[key[1]]
        return frozenset(k for j in some for k in keeper._sharing[j])

    def look_at_head(self, loss: int, tensors: Sequence[Tensor]) -> None:
        """Note whether a head's cotangent and gradients are finite, in this part of a batch and those before."""
        finite = [tensor.sum(dtype=torch.float32).isfinite() for tensor in tensors]
        if loss in self.sound_heads:
            finite.append(self.sound_heads[loss])
        self.sound_heads[loss] = torch.stack(finite).all()

    def may_update(self, module: int, finite: Tensor) -> Tensor:
        """Whether a module's Update may run: its gradients are finite, and so was every loss that reaches it."""
        own = self.keeper._reached[module] | {j for j, home in enumerate(self.keeper._homes) if home == module}
        flags = [finite, *(self.sound_heads[j] for j in sorted(own))]
        self.sound_modules[module] = torch.stack(flags).all()
        return self.sound_modules[module]

    def end(self) -> None:
        """After the step's last Update."""
        heads = torch.stack([self.sound_heads[j] for j in range(len(self.graph.heads))])
        modules = torch.stack([self.sound_modules[m] for m in range(self.graph.modules)])
        self.keeper.end(heads, modules)


def _members(graph: TaskGraph) -> dict[tuple[int, int], set[int]]:
    """For every group (module, reach left) the losses whose cotangents are in it."""
    found: dict[tuple[int, int], set[int]] = {}
    for m in reversed(range(graph.modules)):
        for left in graph.groups[m]:
            found[m, left] = set(graph.sources.get((m, left), ())) | found.get((m + 1, left + 1), set())
    return found
