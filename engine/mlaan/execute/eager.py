"""The eager executor: the plan's order, one stream. It is the oracle for all others, and the CPU's path."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from mlaan.execute.heads import accumulate, run_heads
from mlaan.execute.module import Autocast, Cotangent, ModuleWork
from mlaan.execute.statistics import ModuleState, RandomState
from mlaan.learning import Supervision
from mlaan.plan import Kind, Step, StepPlan, Task


class EagerExecutor:
    """Runs a step plan task by task.

    Args:
        plan: what to run, in order.
        supervision: the losses that the plan was made for.
        work: each local module's work.
        states: each local module's running statistics and buffers.
        update: moves a module's twins and weights by the gradients in `.grad`, and clears these.
        autocast: the precision of the heads, as the modules' work has it.
    """

    def __init__(
        self,
        plan: StepPlan,
        supervision: Supervision,
        work: Sequence[ModuleWork],
        states: Sequence[ModuleState],
        update: Callable[[int], None],
        autocast: Autocast = nullcontext,
    ) -> None:
        self.autocast = autocast
        self.plan, self.losses, self.work, self.states, self.update = plan, supervision.losses, work, states, update
        self.rebuilds = [plan.rebuilds(module) for module in range(plan.graph.modules)]

    def run(self, images: Tensor, labels: Tensor, *, update: bool = True) -> tuple[Tensor, Tensor]:
        """One training step.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64.
            update: False leaves the gradients in `.grad` and moves no weight and no twin.

        Returns:
            The losses (L,), unweighted, and each head's number of right answers (L,), on the device.
        """
        step = _StepState(self, images, labels)
        for planned in self.plan.steps:
            if update or planned.task.kind is not Kind.UPDATE:
                step.run(planned)
        return torch.stack(step.loss_values), torch.stack(step.correct)


class _StepState:
    """What is alive during one step."""

    def __init__(self, executor: EagerExecutor, images: Tensor, labels: Tensor) -> None:
        self.executor, self.images, self.labels = executor, images, labels
        self.graph = executor.plan.graph
        self.inputs: dict[int, Tensor] = {0: images}
        self.outputs: dict[int, Tensor] = {}
        self.saved: dict[int, object] = {}
        self.random: dict[int, RandomState] = {}
        self.arrived: dict[tuple[int, int], Cotangent] = {}
        self.rebuilds_left = list(executor.rebuilds)
        self.heads_left = [0] * self.graph.modules
        for loss in executor.losses:
            self.heads_left[loss.module] += 1
        empty = images.new_zeros(())
        self.loss_values: list[Tensor] = [empty] * len(executor.losses)
        self.correct: list[Tensor] = [empty] * len(executor.losses)

    def run(self, step: Step) -> None:
        """Run one step and let go of what it is the last to use."""
        task = step.task
        match task.kind:
            case Kind.FORWARD:
                self._forward(task.module, step.keep)
            case Kind.REBUILD:
                self._rebuild(task.module)
            case Kind.HEAD:
                self._heads(step.tasks)
            case Kind.PROPAGATE | Kind.BACKWARD:
                self._carry(task, keep=task.module not in step.drops)
            case Kind.UPDATE:
                self.executor.update(task.module)
        for module in step.drops:
            del self.saved[module]

    def _forward(self, module: int, keep: bool) -> None:
        x = self.inputs[module]
        if self.rebuilds_left[module]:
            self.random[module] = RandomState(x.device)
        else:
            del self.inputs[module]
        with self.executor.states[module].moving():
            y, saved = self.executor.work[module].forward(x, keep)
        if keep:
            self.saved[module] = saved
        if self.heads_left[module]:
            self.outputs[module] = y
        if module + 1 < self.graph.modules:
            self.inputs[module + 1] = y

    def _rebuild(self, module: int) -> None:
        with self.executor.states[module].frozen(), self.random[module].replayed():
            _, self.saved[module] = self.executor.work[module].forward(self.inputs[module], True)
        self.rebuilds_left[module] -= 1
        if not self.rebuilds_left[module]:
            del self.inputs[module], self.random[module]

    def _heads(self, tasks: Sequence[Task]) -> None:
        """Heads that share a network, in one call for each shape of output among them."""
        by_shape: dict[torch.Size, list[Task]] = {}
        for task in tasks:
            by_shape.setdefault(self.outputs[task.module].shape, []).append(task)
        for together in by_shape.values():
            losses = [self.executor.losses[task.index] for task in together]
            outputs = [self.outputs[task.module] for task in together]
            results = run_heads(losses, outputs, self.images, self.labels, self.executor.autocast)
            for task, loss, result in zip(together, losses, results, strict=True):
                self.loss_values[task.index], self.correct[task.index] = result.loss, result.correct
                self._arrive(task.module, min(loss.reach, task.module + 1), result.cotangent)
                self.heads_left[task.module] -= 1
                if not self.heads_left[task.module]:
                    del self.outputs[task.module]

    def _carry(self, task: Task, *, keep: bool) -> None:
        """Propagate one group, or Backward for all of them (and onward, where the only group goes on)."""
        module, merged = task.module, self.graph.merged(task.module)
        backward = task.kind is Kind.BACKWARD
        groups = self.graph.groups[module] if backward else (task.index,)
        arrived = [self.arrived.pop((module, n)) if backward else self.arrived[module, n] for n in groups]
        onward = not backward or merged
        inputs, grads = self.executor.work[module].backward(
            self.saved[module], arrived, [onward] * len(groups), backward, keep
        )
        if backward:
            for weight, grad in zip(self.executor.work[module].weights, grads, strict=True):
                accumulate(weight, grad)
        for left, cotangent in zip(groups, inputs, strict=True):
            if cotangent is not None:
                self._arrive(module - 1, left - 1, Cotangent(dense=cotangent))

    def _arrive(self, module: int, left: int, cotangent: Cotangent) -> None:
        before = self.arrived.get((module, left))
        self.arrived[module, left] = cotangent if before is None else before + cotangent
