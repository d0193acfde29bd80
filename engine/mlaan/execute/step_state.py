"""What is alive during one step, and how each task changes it."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mlaan.execute.heads import accumulate
from mlaan.execute.statistics import RandomState
from mlaan.plan import Kind, Step, Task
from mlaan_kernels.blocks import Cotangent
from mlaan_kernels.grad_norm import grad_norm

if TYPE_CHECKING:
    from mlaan.execute.eager import EagerExecutor
    from mlaan.execute.loss_scale import StepScale


class StepState:
    """One training step of an executor, plan step by plan step.

    Args:
        scale: loss scales of an earlier part of the same step, which it shares; None: those of a new step.
    """

    def __init__(
        self, executor: "EagerExecutor", images: Tensor, labels: Tensor, scale: "StepScale | None" = None
    ) -> None:
        self.executor, self.images, self.labels = executor, images, labels
        self.graph = executor.plan.graph
        self.scale = scale
        if scale is None and executor.loss_scale is not None:
            self.scale = executor.loss_scale.begin()
        self.inputs: dict[int, Tensor] = {0: images}
        self.sources: dict[int, Tensor] = {}
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
            case Kind.NORM:
                self._norm()
            case Kind.UPDATE:
                self._update(task.module)
        for module in step.drops:
            del self.saved[module]
            if not self.rebuilds_left[module]:
                del self.sources[module]

    def tensors(self, step: Step) -> Iterator[Tensor]:
        """What a step reads or leaves behind here, as far as it is there now: for who runs steps side by side."""
        for task in step.tasks:
            m = task.module
            match task.kind:
                case Kind.FORWARD | Kind.REBUILD:
                    found: list[Any] = [self.inputs.get(m), self.inputs.get(m + 1), self.sources.get(m)]
                    found += [self.outputs.get(m), self.pooled.get(m)]
                case Kind.HEAD:
                    found = [self.outputs.get(m), self.pooled.get(m), self.loss_values[task.index]]
                    found += [self.correct[task.index], *_grads(self.executor.losses[task.index].head.parameters())]
                    found += self._cotangents(m)
                case Kind.PROPAGATE | Kind.BACKWARD:
                    found = [self.sources.get(m), *self._cotangents(m), *self._cotangents(m - 1)]
                    found += _grads(self.executor.work[m].weights)
                case _:
                    found = _grads(self.executor.weights[m]) if task.kind is Kind.UPDATE else self._all_grads()
            yield from (tensor for tensor in found if tensor is not None)

    def _cotangents(self, module: int) -> list[Tensor | None]:
        arrived = [cotangent for (m, _), cotangent in self.arrived.items() if m == module]
        return [part for cotangent in arrived for part in (cotangent.dense, cotangent.pooled)]

    def _all_grads(self) -> list[Tensor]:
        return [grad for weights in self.executor.weights for grad in _grads(weights)]

    def _forward(self, module: int, keep: bool) -> None:
        x = self.inputs[module]
        rebuilt = self.rebuilds_left[module] > 0
        if rebuilt and self.executor.keep_random:
            self.random[module] = RandomState(x.device)
        if not rebuilt:
            del self.inputs[module]
        if keep or rebuilt:
            self.sources[module] = x
        with self.executor.states[module].moving():
            y, saved, pooled = self.executor.work[module].forward(x, keep, module in self.executor.heads.pools)
        if module in self.random:
            self.executor.drew(module, self.random[module])
        if keep:
            self.saved[module] = saved
        if self.heads_left[module]:
            self.outputs[module] = y
            if pooled is not None:
                self.pooled[module] = pooled.to(y.dtype)
        if module + 1 < self.graph.modules:
            self.inputs[module + 1] = y

    def _rebuild(self, module: int) -> None:
        random = self.random.get(module)
        with self.executor.states[module].frozen(), nullcontext() if random is None else random.replayed():
            self.saved[module] = self.executor.work[module].forward(self.inputs[module], True).saved
        self.rebuilds_left[module] -= 1
        if not self.rebuilds_left[module]:
            del self.inputs[module]
            self.random.pop(module, None)

    def _heads(self, tasks: Sequence[Task]) -> None:
        places = [task.index for task in tasks]
        scales = None if self.scale is None else {place: self.scale.of("head", place) for place in places}
        results = self.executor.heads.run(places, self.outputs, self.pooled, self.images, self.labels, scales)
        for task, result in zip(tasks, results, strict=True):
            place, left = task.index, min(self.executor.losses[task.index].reach, task.module + 1)
            self.loss_values[place], self.correct[place] = result.loss, result.correct
            if self.scale is not None:
                parts = (result.cotangent.dense, result.cotangent.pooled)
                self.scale.look_at_head(place, [part for part in parts if part is not None])
            self._arrive(task.module, left, result.cotangent, ("head", place))
            self.heads_left[task.module] -= 1
            if not self.heads_left[task.module]:
                del self.outputs[task.module]
                self.pooled.pop(task.module, None)

    def _carry(self, tasks: Sequence[Task], *, keep: bool) -> None:
        """Propagates, each with a group of its own, and Backward for the sum of all groups, in one call.

        The only group of a merged module goes on with its Backward. With loss scales each group goes on by itself, in
        its own scale: brought to the least of all it could vanish.
        """
        module = tasks[0].module
        if self.scale is not None and len(tasks) > 1:
            for task in tasks:
                self._carry([task], keep=keep or task is not tasks[-1])
            return
        last = tasks[-1].kind is Kind.BACKWARD
        groups = self.graph.groups[module] if last else tuple(task.index for task in tasks)
        onward = {task.index for task in tasks if task.kind is Kind.PROPAGATE}
        onward |= set(groups) if self.graph.merged(module) else set()
        arrived = [self.arrived.pop((module, n)) if last else self.arrived[module, n] for n in groups]
        common: tuple[Any, ...] = ("module", module) if len(groups) != 1 else ("group", module, *groups)
        if self.scale is not None:
            factors = [self.scale.factor(("group", module, n), common) for n in groups]
            arrived = [one.scaled(factor) for one, factor in zip(arrived, factors, strict=True)]
        work = self.executor.work[module]
        inputs, grads = work.backward(self.saved[module], arrived, [n in onward for n in groups], last, keep)
        if last:
            for weight, grad in zip(work.weights, grads, strict=True):
                if grad is not None and self.scale is not None:
                    grad = grad * self.scale.inverse(*common)
                accumulate(weight, grad)
        for left, cotangent in zip(groups, inputs, strict=True):
            if cotangent is not None:
                self._arrive(module - 1, left - 1, Cotangent(dense=cotangent), common)

    def _arrive(self, module: int, left: int, cotangent: Cotangent, scaled: tuple[Any, ...]) -> None:
        if self.scale is not None:
            cotangent = cotangent.scaled(self.scale.factor(scaled, ("group", module, left)))
        before = self.arrived.get((module, left))
        self.arrived[module, left] = cotangent if before is None else before + cotangent

    def _finite(self, module: int) -> Tensor | None:
        """Whether a module may be updated, by the loss scale; None where there is none."""
        if self.scale is None:
            return None
        if module in self.scale.sound_modules:
            return self.scale.sound_modules[module]
        grads = _grads(self.executor.weights[module])
        return self.scale.may_update(module, grad_norm(grads)[1] if grads else self.images.new_ones(()).bool())

    def _norm(self) -> None:
        modules = range(self.graph.modules)
        self.executor.optimizer.measure_norm([self._finite(module) for module in modules])

    def _update(self, module: int) -> None:
        self.executor.optimizer.update(module, self._finite(module))


def _grads(weights: Any) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]
