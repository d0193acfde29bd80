"""The eager executor: the plan's order, one stream. It is the oracle for all others, and the CPU's path."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mlaan.execute.head_calls import HeadCalls
from mlaan.execute.heads import accumulate
from mlaan.execute.module import ModuleWork
from mlaan.execute.statistics import ModuleState, RandomState
from mlaan.learning import Supervision
from mlaan.plan import Kind, Step, StepPlan, Task
from mlaan_kernels.blocks import Cotangent
from mlaan_kernels.choice import Implementation, using


class EagerExecutor:
    """Runs a step plan task by task.

    Args:
        plan: what to run, in order.
        supervision: the losses that the plan was made for.
        work: each local module's work.
        states: each local module's running statistics and buffers.
        update: moves a module's twins and weights by the gradients in `.grad`, and clears these.
        heads: runs the auxiliary networks.
        kernels: the form that operators take during a step.
    """

    def __init__(
        self,
        plan: StepPlan,
        supervision: Supervision,
        work: Sequence[ModuleWork],
        states: Sequence[ModuleState],
        update: Callable[[int], None],
        heads: HeadCalls,
        kernels: Implementation = "reference",
    ) -> None:
        self.heads = heads
        self.kernels: Implementation = kernels
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
        with using(self.kernels):
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
        self.pooled: dict[int, Tensor] = {}
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
                self._carry(step.tasks, keep=task.module not in step.drops)
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
            y, saved, pooled = self.executor.work[module].forward(x, keep, module in self.executor.heads.pools)
        if keep:
            self.saved[module] = saved
        if self.heads_left[module]:
            self.outputs[module] = y
            if pooled is not None:
                self.pooled[module] = pooled.to(y.dtype)
        if module + 1 < self.graph.modules:
            self.inputs[module + 1] = y

    def _rebuild(self, module: int) -> None:
        with self.executor.states[module].frozen(), self.random[module].replayed():
            self.saved[module] = self.executor.work[module].forward(self.inputs[module], True).saved
        self.rebuilds_left[module] -= 1
        if not self.rebuilds_left[module]:
            del self.inputs[module], self.random[module]

    def _heads(self, tasks: Sequence[Task]) -> None:
        places = [task.index for task in tasks]
        results = self.executor.heads.run(places, self.outputs, self.pooled, self.images, self.labels)
        for task, result in zip(tasks, results, strict=True):
            self.loss_values[task.index], self.correct[task.index] = result.loss, result.correct
            self._arrive(task.module, min(self.executor.losses[task.index].reach, task.module + 1), result.cotangent)
            self.heads_left[task.module] -= 1
            if not self.heads_left[task.module]:
                del self.outputs[task.module]
                self.pooled.pop(task.module, None)

    def _carry(self, tasks: Sequence[Task], *, keep: bool) -> None:
        """Propagates, each with a group of its own, and Backward for the sum of all groups, in one call.

        The only group of a merged module goes on with its Backward.
        """
        module = tasks[0].module
        last = tasks[-1].kind is Kind.BACKWARD
        groups = self.graph.groups[module] if last else tuple(task.index for task in tasks)
        onward = {task.index for task in tasks if task.kind is Kind.PROPAGATE}
        onward |= set(groups) if self.graph.merged(module) else set()
        arrived = [self.arrived.pop((module, n)) if last else self.arrived[module, n] for n in groups]
        work = self.executor.work[module]
        inputs, grads = work.backward(self.saved[module], arrived, [n in onward for n in groups], last, keep)
        if last:
            for weight, grad in zip(work.weights, grads, strict=True):
                accumulate(weight, grad)
        for left, cotangent in zip(groups, inputs, strict=True):
            if cotangent is not None:
                self._arrive(module - 1, left - 1, Cotangent(dense=cotangent))

    def _arrive(self, module: int, left: int, cotangent: Cotangent) -> None:
        before = self.arrived.get((module, left))
        self.arrived[module, left] = cotangent if before is None else before + cotangent
