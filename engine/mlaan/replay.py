"""Runs a kept step again, task by task, and finds where its numbers stop being finite."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mlaan import checkpoint
from mlaan.build import choose_device, engine_alone
from mlaan.config import Config
from mlaan.engine import Engine
from mlaan.execute import EagerExecutor
from mlaan.observe.incident import Incident
from mlaan.plan import Kind, Step
from mlaan.plan.timeline import step_name


@dataclass(frozen=True)
class Look:
    """What a task left.

    Attributes:
        task: its name, such as "Backward(2)".
        largest: the largest absolute value among its outputs, cotangents and gradients; nan if there is one.
        bad: how many of these values are not finite.
        count: how many there are.
    """

    task: str
    largest: float
    bad: int
    count: int


@dataclass(frozen=True)
class Replay:
    """A step that was run again.

    Attributes:
        looks: its tasks, in the order in which they ran.
        first: where something that is not finite came up first, in words; "" if nothing did.
    """

    looks: tuple[Look, ...]
    first: str


def plain(config: Config) -> tuple[Config, tuple[str, ...]]:
    """The settings with one task after the other, each layer by itself, and what that changes, in words."""
    train, memory = config.train, config.memory
    changes = []
    if train.executor != "eager":
        changes.append(f"train.executor = 'eager', not {train.executor!r}")
    if train.compile != "off":
        changes.append(f"train.compile = 'off', not {train.compile!r}")
    if train.kernels == "triton" or (train.kernels == "auto" and choose_device(train.device).type == "cuda"):
        changes.append(f"train.kernels = 'reference', not {train.kernels!r}")
    if memory.recompute == "fused":
        changes.append("memory.recompute = 'none', not 'fused'")
        memory = replace(memory, recompute="none")
    train = replace(train, executor="eager", compile="off", kernels="reference")
    return replace(config, train=train, memory=memory), tuple(changes)


def replay(incident: Incident, config: Config) -> Replay:
    """Runs the incident's step again under `config`, which comes from `plain`.

    Raises:
        UserError: the device of `config` is not there, or the state does not fit the network.
    """
    engine = engine_alone(config, incident.normalisation)
    engine.load_state_dict(incident.engine)
    checkpoint.set_random_state(incident.random, engine.device)
    assert isinstance(engine.executor, EagerExecutor)
    engine.executor.watch = watcher = _Watcher(engine, engine.executor)
    with watcher.layers():
        engine.step(incident.images, incident.labels)
    return Replay(tuple(watcher.looks), watcher.first)


class _Watcher:
    """Looks at what every task leaves and, until something is not finite, at what every layer gives."""

    def __init__(self, engine: Engine, executor: EagerExecutor) -> None:
        self._executor = executor
        parts = {"backbone": engine.backbone.net, "heads": engine.heads}
        self._layers = {f"{part}.{name}": layer for part, net in parts.items() for name, layer in net.named_modules()}
        self._weights = {
            f"{part}.{name}": weight for part, net in parts.items() for name, weight in net.named_parameters()
        }
        self._task = ""
        self.looks: list[Look] = []
        self.first = ""

    @contextmanager
    def __call__(self, step: Step, state: Any) -> Iterator[None]:
        self._task = step_name(step)
        seen = list(state.tensors(step))  # some of it is let go of
        yield
        is_update = step.task.kind is Kind.UPDATE
        seen = self._executor.weights[step.task.module] if is_update else [*seen, *state.tensors(step)]
        largest, bad, count = _measure(list({id(tensor): tensor for tensor in _floats(seen)}.values()))
        self.looks.append(Look(self._task, largest, bad, count))
        if bad and not self.first:
            self.first = self._first_weight(step) or f"{self._task}: {bad:,} of {count:,} values are not finite"

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Inside, layers are looked at; those within another come before it, so that the innermost is blamed."""
        hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Any:
        def look(layer: nn.Module, inputs: Sequence[Any], output: Any) -> None:
            _, bad, count = _measure(_floats([output]))
            if not bad or self.first:
                return
            into, bad_inputs, _ = _measure(_floats(inputs))
            own, bad_weights, _ = _measure(list(layer.parameters()))
            self.first = (
                f"layer {name} ({type(layer).__name__}) in {self._task}: {bad:,} of {count:,} values of its output are "
                f"not finite; the largest of its input is {_number(into, bad_inputs)}"
            )
            if list(layer.parameters()):
                self.first += f", of its weights {_number(own, bad_weights)}"

        return look

    def _first_weight(self, step: Step) -> str:
        """Backward goes from the last layer to the first, so the last weight of a network comes first."""
        wanted = "weight" if step.task.kind is Kind.UPDATE else "gradient"
        for name, weight in reversed(self._weights.items()):
            value = weight if wanted == "weight" else weight.grad
            if value is not None and (found := _measure([value]))[1]:
                return f"the {wanted} of {name} in {self._task}: {found[1]:,} of {found[2]:,} values are not finite"
        return ""


def _floats(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _floats(value)
        elif isinstance(value, Mapping):
            found += _floats(value.values())
    return found


def _measure(tensors: Sequence[Tensor]) -> tuple[float, int, int]:
    """The largest absolute finite value, the number of values that are not finite, and that of all."""
    largest, bad, count = 0.0, 0, 0
    for tensor in tensors:
        value = tensor.detach()
        finite = value.isfinite()
        bad += int(value.numel() - finite.sum())
        count += value.numel()
        if value.numel():
            largest = max(largest, float(torch.where(finite, value, 0).abs().max()))
    return largest, bad, count


def _number(largest: float, bad: int) -> str:
    return "not finite" if bad else f"{largest:.4g}"
