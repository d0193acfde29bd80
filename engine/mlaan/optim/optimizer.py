"""The optimizer: one module at a time, as soon as its gradients are complete."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlaan.config import OptimConfig
from mlaan.errors import UserError
from mlaan.learning import Twin
from mlaan.optim.clip import coefficient
from mlaan.optim.rules import Moving, make_rule
from mlaan.optim.states import States
from mlaan.optim.twins import move_twins
from mlaan_kernels.sgd_update import Twin as TwinTensor


@dataclass
class Group:
    """What one Update moves: weights, and the twins (weight, tensor, keep) that follow some of them."""

    weights: list[nn.Parameter]
    twins: list[tuple[nn.Parameter, Tensor, float]]


class Optimizer:
    """Updates groups of weights one by one, twins first: twin <- keep * twin + (1 - keep) * weight of before the step.

    Nothing in `update` and `measure_norm` waits for the device. docs/optimizers.md says what each choice computes.

    Args:
        groups: for each local module the weights of its Update, frozen ones too; each weight in one group. float32 or
            float64, or bfloat16 (with a float32 master each, which the update works on), all on one device.
        twins: every twin; it moves in the Update of its source's module. Those of bfloat16 weights are float32.
        names: a name for every weight, for the state dict.
        config: the rule and its numbers, the learning rate to start with, clipping, and whose code runs it.
        masters: float32 values of bfloat16 weights, of their shapes; they are copied. Where one is missing, the
            weight's own value is taken.

    Raises:
        UserError: the code of `optim.backend` is not installed, or does not take such weights.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        twins: Sequence[Twin],
        names: Mapping[nn.Parameter, str],
        config: OptimConfig,
        masters: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        self.config = config
        self.groups = [Group(list(weights), []) for weights in groups]
        home = {id(weight): group for group in self.groups for weight in group.weights}
        for twin in twins:
            for tensor, weight in zip(twin.block.parameters(), twin.source.parameters(), strict=True):
                home[id(weight)].twins.append((weight, tensor, twin.keep))
        weights = [group.weights for group in self.groups]
        self.rule = make_rule(config, [weight for some in weights for weight in some])
        self.states = States(weights, names, config, masters or {}, host_steps=not self.rule.on_device)
        self._learning_rate = config.learning_rate
        self._device_rate: Tensor | None = None
        self._coefficient: Tensor | None = None
        self._measured: set[int] = set()

    @property
    def learning_rate(self) -> float:
        """Settable before any step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = value
        if self._device_rate is not None:
            self._device_rate.fill_(value)

    def on_device(self, on: bool) -> None:
        """Whether updates read the learning rate from the device, as one float32, as a captured CUDA graph has to.

        Step counts and the clip coefficient are on the device in any case; all other numbers never change.

        Raises:
            UserError: the backend takes its numbers from Python only.
        """
        if on and not self.rule.on_device:
            raise UserError(
                f"optim.backend = {self.config.backend!r} cannot run inside a CUDA graph: set optim.backend = "
                "'native', or train.executor = 'eager' or 'streams'"
            )
        self._device_rate = None
        if on:
            device = next(weight.device for group in self.groups for weight in group.weights)
            self._device_rate = torch.full((), self._learning_rate, dtype=torch.float32, device=device)

    @torch.no_grad()
    def update(self, group: int, finite: Tensor | None = None) -> None:
        """Move the twins and weights of one group by the gradients in `.grad`, then clear these.

        A weight without a gradient stays, as in torch.optim; its twins still move.

        Args:
            group: index of the local module.
            finite: one bool of shape () on the device: False leaves weights, twins, states and step counts of this
                group as they are. The gradients are cleared all the same.

        Raises:
            UserError: `finite` was given and the backend cannot obey it.
        """
        if finite is not None and self.states.counts and not self.rule.on_device:
            raise UserError(
                f"optim.backend = {self.config.backend!r} counts the steps of {self.config.name!r} on the CPU and "
                "cannot leave one out, as train.precision = 'float16' needs it: set optim.backend = 'native'"
            )
        members = self.groups[group]
        grads = {weight: weight.grad for weight in members.weights if weight.grad is not None}
        scale = self._scale(group, list(grads.values()), finite)
        step = None
        if self.states.counts and grads:
            step = self.states.step(group).add_(1 if finite is None else finite)
        idle = [(self.master_of(weight), tensor, keep) for weight, tensor, keep in members.twins if weight not in grads]
        move_twins(idle, finite)
        for alike in _alike(grads):
            place = {weight: i for i, weight in enumerate(alike)}
            twins = [TwinTensor(place[w], tensor, keep) for w, tensor, keep in members.twins if w in place]
            states = [self.states.of(weight) for weight in alike]
            masters = [self.master_of(weight) for weight in alike] if alike[0].dtype == torch.bfloat16 else []
            self.rule(
                Moving(
                    alike,
                    [grads[weight] for weight in alike],
                    masters,
                    [list(kind) for kind in zip(*states, strict=True)],
                    twins,
                    self._rate(alike[0].dtype),
                    step,
                    scale,
                    finite,
                )
            )
        for weight in grads:
            weight.grad = None

    @torch.no_grad()
    def measure_norm(self, finite: Sequence[Tensor | None] | None = None) -> None:
        """The coefficient of `clip = "global"`, of all `.grad`s that are there now, for the updates of this step.

        Args:
            finite: as for `update`, one for each group; the norm is that of the groups which are not to be skipped.
        """
        verdicts = [None] * len(self.groups) if finite is None else finite
        grads = [[w.grad for w in group.weights if w.grad is not None] for group in self.groups]
        measured = coefficient(list(zip(verdicts, grads, strict=True)), self.config.clip_norm)
        if self._coefficient is None:
            self._coefficient = measured
        elif measured is not None:
            self._coefficient.copy_(measured)
        self._measured = set(range(len(self.groups)))

    def _rate(self, dtype: torch.dtype) -> float | Tensor:
        """The learning rate: for all but float64 weights rounded to float32, as the one on the device is."""
        if self._device_rate is not None:
            return self._device_rate
        return self._learning_rate if dtype == torch.float64 else torch.tensor(self._learning_rate).item()

    def _scale(self, group: int, grads: list[Tensor], finite: Tensor | None) -> Tensor | None:
        if self.config.clip == "module":
            return coefficient([(finite, grads)], self.config.clip_norm)
        if self.config.clip == "off":
            return None
        assert group in self._measured, "clip = 'global': measure_norm() comes before the updates of every step"
        self._measured.remove(group)
        return self._coefficient

    def master_of(self, weight: nn.Parameter) -> Tensor:
        """The float32 master of a bfloat16 weight; any other weight itself."""
        return self.states.masters.get(weight, weight)

    def prepare(self) -> None:
        """Make all states now, as zeros: nothing is then created in an update. Frozen weights have none."""
        self.states.prepare()
        if self.config.clip == "global" and self._coefficient is None:
            weight = next(weight for group in self.groups for weight in group.weights)
            self._coefficient = torch.ones((), dtype=torch.float32, device=weight.device)

    def tensors(self) -> Iterator[Tensor]:
        """All that an update changes besides weights and twins: masters, states, step counts."""
        return self.states.tensors()

    def state_dict(self) -> dict[str, Tensor]:
        """Masters, states and step counts by name; see `States.state_dict`."""
        return self.states.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over `state_dict()`'s values, into the tensors that are there already.

        Raises:
            UserError: an entry is missing, belongs to nothing here or has another shape; nothing has changed then.
        """
        self.states.load_state_dict(state)


def _alike(grads: Mapping[nn.Parameter, Tensor]) -> list[list[nn.Parameter]]:
    """The weights, those together that one call can move: of one dtype, with gradients of one dtype."""
    kinds: dict[tuple[torch.dtype, torch.dtype], list[nn.Parameter]] = {}
    for weight, grad in grads.items():
        kinds.setdefault((weight.dtype, grad.dtype), []).append(weight)
    return list(kinds.values())
