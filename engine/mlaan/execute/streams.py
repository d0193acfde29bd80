"""The stream executor: tasks that do not wait for each other run side by side."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from mlaan.execute.eager import EagerExecutor
from mlaan.execute.lanes import Crossing, Lanes
from mlaan.execute.step_state import StepState
from mlaan.plan.lanes import LanePlan
from mlaan_kernels.choice import using

MakeLanes = Callable[[Sequence[bool]], Lanes]
"""Makes lanes, given for each whether it is urgent."""


class StreamExecutor(EagerExecutor):
    """Runs the plan's tasks on several streams.

    Given to the device in the plan's order. The first step with images of a new shape runs on one stream: kernels are
    tuned in it, and what they keep for later steps is made. So do steps without update, and those that find gradients.

    Args:
        lanes_for: where to run each step of the plan, for images of a shape.
        make_lanes: makes the streams.
        others: as `EagerExecutor`.
    """

    def __init__(
        self, *others: Any, lanes_for: Callable[[tuple[int, ...]], LanePlan], make_lanes: MakeLanes, **named: Any
    ) -> None:
        super().__init__(*others, **named)
        self.lanes_for, self.make_lanes = lanes_for, make_lanes
        self.seen: set[tuple[int, ...]] = set()
        self.ways: dict[tuple[int, ...], tuple[LanePlan, Lanes]] = {}

    def run(self, images: Tensor, labels: Tensor, *, update: bool = True) -> tuple[Tensor, Tensor]:
        """See EagerExecutor."""
        shape = tuple(images.shape)
        if shape not in self.seen or not update or self.has_gradients():
            self.seen.add(shape)
            return super().run(images, labels, update=update)
        plan, lanes = self.way(shape)
        if plan.count == 1:
            return super().run(images, labels, update=update)
        state = StepState(self, images, labels)
        crossing = Crossing(lanes, plan)
        try:
            with using(self.kernels):
                for place, step in enumerate(self.plan.steps):
                    with crossing.step(place, Touched(partial(state.tensors, step))):
                        self._run_step(state, step)
            crossing.join()
            return self._results(state, update)
        finally:
            crossing.close()

    def way(self, shape: tuple[int, ...]) -> tuple[LanePlan, Lanes]:
        """Where steps with images of a shape run."""
        if shape not in self.ways:
            plan = self.lanes_for(shape)
            self.ways[shape] = plan, self.make_lanes(plan.urgent)
        return self.ways[shape]


class Touched:
    """The tensors of a step, looked up anew each time they are gone through."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.look = look

    def __iter__(self) -> Any:
        return self.look()
