"""The eager executor: the plan's order, one stream. It is the oracle for all others, and the CPU's path."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from mlaan.errors import StepMemoryError
from mlaan.execute.head_calls import HeadCalls
from mlaan.execute.loss_scale import LossScale
from mlaan.execute.module import ModuleWork
from mlaan.execute.statistics import ModuleState, RandomState
from mlaan.execute.step_state import StepState
from mlaan.learning import Supervision
from mlaan.plan import Kind, Step, StepPlan
from mlaan_kernels.choice import Implementation, using

Watch = Callable[[Step, StepState], AbstractContextManager[object]]
"""Gives a context that each step of the plan runs in, to measure it or to look at what it leaves."""


_UPDATES = (Kind.NORM, Kind.UPDATE)


class Updates(Protocol):
    """Who moves weights and twins."""

    def update(self, group: int, finite: Tensor | None = None) -> None:
        """Move a module's twins and weights by the gradients in `.grad`, and clear these.

        Args:
            finite: 0-dim bool; False leaves all as it is.
        """
        ...

    def measure_norm(self, finite: Sequence[Tensor | None]) -> None:
        """Look at all gradients before any Update, each module's with its verdict as in `update`."""
        ...


class EagerExecutor:
    """Runs a step plan task by task.

    Args:
        plan: what to run, in order.
        supervision: the losses that the plan was made for.
        work: each local module's work.
        states: each local module's running statistics and buffers.
        optimizer: moves twins and weights.
        weights: what each module's Update moves.
        heads: runs the auxiliary networks.
        kernels: the form that operators take during a step.
        loss_scale: for float16.

    Attributes:
        watch: if set, each step of the plan runs inside `watch(step, state)`.
        drawn: for each module whether a forward that is rebuilt was seen to draw random numbers.
        keep_random: whether random states are kept for rebuilds at all.
    """

    def __init__(
        self,
        plan: StepPlan,
        supervision: Supervision,
        work: Sequence[ModuleWork],
        states: Sequence[ModuleState],
        optimizer: Updates,
        weights: Sequence[Sequence[nn.Parameter]],
        heads: HeadCalls,
        kernels: Implementation = "reference",
        loss_scale: LossScale | None = None,
    ) -> None:
        self.plan, self.losses, self.work, self.states = plan, supervision.losses, work, states
        self.optimizer, self.weights, self.heads = optimizer, weights, heads
        self.kernels: Implementation = kernels
        self.loss_scale = loss_scale
        self.rebuilds = [plan.rebuilds(module) for module in range(plan.graph.modules)]
        self.watch: Watch | None = None
        self.drawn = [False] * plan.graph.modules
        self.keep_random = True

    def run(self, images: Tensor, labels: Tensor, *, update: bool = True) -> tuple[Tensor, Tensor]:
        """One training step.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64, or (N, classes) probabilities of the weights' dtype.
            update: False leaves the gradients in `.grad` and moves no weight and no twin.

        Returns:
            The losses (L,), unweighted, and each head's number of right answers (L,), on the device.

        Raises:
            StepMemoryError: the device's memory does not do; it names the task.
        """
        state = StepState(self, images, labels)
        with using(self.kernels):
            for step in self.plan.steps:
                if update or step.task.kind not in _UPDATES:
                    self._run_step(state, step)
        return self._results(state, update)

    def run_parts(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One training step on a batch that is cut into parts: their gradients are added up before one update.

        A part counts by its share of the images, so that the gradient is that of the mean loss over all of them, as
        long as no BatchNorm tells the parts apart. Gradients that are there already count as they are. With loss scales
        a module is updated if no part overflowed in it.

        Args:
            parts: (images, labels) of each, as for `run`.

        Returns:
            As `run`: means of the losses over all images, and the right answers of all parts.

        Raises:
            StepMemoryError: the device's memory does not do; it names the task.
        """
        sizes = [len(images) for images, _ in parts]
        total, states, losses = sum(sizes), [], []
        if self.has_gradients():
            self._multiply_gradients(total / sizes[0])
        with using(self.kernels):
            for (images, labels), size, before in zip(parts, sizes, [0, *sizes], strict=False):
                if before and before != size:
                    self._multiply_gradients(before / size)  # they are sums in units of the present part
                states.append(StepState(self, images, labels, states[0].scale if states else None))
                for step in self.plan.steps:
                    if step.task.kind not in _UPDATES:
                        self._run_step(states[-1], step)
                found, correct = self._results(states[-1], update=False)
                losses.append((found * (size / total), correct))
            self._multiply_gradients(sizes[-1] / total)
            for step in self.plan.steps:
                if step.task.kind in _UPDATES:
                    self._run_step(states[-1], step)
        self._results(states[-1], update=True)
        return torch.stack([loss for loss, _ in losses]).sum(0), torch.stack([right for _, right in losses]).sum(0)

    @torch.no_grad()
    def _multiply_gradients(self, factor: float) -> None:
        grads = [weight.grad for weights in self.weights for weight in weights if weight.grad is not None]
        torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]

    def _run_step(self, state: StepState, step: Step) -> None:
        try:
            with nullcontext() if self.watch is None else self.watch(step, state):
                state.run(step)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise StepMemoryError(str(step.task), step.task.module) from error
            raise

    def _results(self, state: StepState, update: bool) -> tuple[Tensor, Tensor]:
        if state.scale is not None and update:
            state.scale.end()
        return torch.stack(state.loss_values), torch.stack(state.correct)

    def has_gradients(self) -> bool:
        """Whether some weight has a gradient already, from a step without update."""
        return any(weight.grad is not None for weights in self.weights for weight in weights)

    def drew(self, module: int, before: RandomState) -> None:
        """Notes whether a forward drew random numbers; `before` is their state then."""
        self.drawn[module] = self.drawn[module] or before.has_moved()
