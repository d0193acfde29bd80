"""What an optimizer remembers of each weight, and how it is saved."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mlaan.config import AdamWConfig, LAMBConfig, LARSConfig, OptimConfig, SGDConfig
from mlaan.errors import UserError


def state_names(config: OptimConfig) -> tuple[str, ...]:
    """What the rule remembers of each weight, a tensor each."""
    if isinstance(config, AdamWConfig | LAMBConfig):
        return "first_moment", "second_moment"
    assert isinstance(config, SGDConfig | LARSConfig), config
    return ("momentum",) if config.momentum else ()


def state_bytes(config: OptimConfig, weights: torch.dtype) -> int:
    """Bytes that an optimizer holds for each trained weight of dtype `weights`, beyond weight, gradient and twins."""
    master = weights == torch.bfloat16
    size = torch.float32.itemsize if master else weights.itemsize
    return size * (len(state_names(config)) + master)


class States:
    """Masters, states and step counts. A tensor that is made once stays where it is in memory.

    Args:
        groups: the weights of each Update.
        names: a name for every weight.
        config: the rule.
        masters: float32 values for bfloat16 weights; see `Optimizer`.
        host_steps: step counts are kept on the CPU, for a rule that reads them there.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        names: Mapping[nn.Parameter, str],
        config: OptimConfig,
        masters: Mapping[nn.Parameter, Tensor],
        *,
        host_steps: bool,
    ) -> None:
        self._groups, self._names, self._rule, self._host_steps = groups, names, config.name, host_steps
        self.kinds = state_names(config)
        self.counts = isinstance(config, AdamWConfig | LAMBConfig)
        self.masters: dict[nn.Parameter, Tensor] = {}
        for weight in (weight for group in groups for weight in group if weight.dtype == torch.bfloat16):
            value = masters.get(weight, weight).detach()
            assert value.shape == weight.shape, f"the master of {names[weight]} has shape {tuple(value.shape)}"
            self.masters[weight] = torch.empty_like(weight, dtype=torch.float32, requires_grad=False).copy_(value)
        self._states: dict[nn.Parameter, tuple[Tensor, ...]] = {}
        self._steps: dict[int, Tensor] = {}

    def of(self, weight: nn.Parameter) -> tuple[Tensor, ...]:
        """The weight's states, one for each of `kinds`, of its shape, strides and dtype (float32 with a master)."""
        states = self._states.get(weight)
        if states is None:
            like = self.masters.get(weight, weight)
            states = self._states[weight] = tuple(torch.zeros_like(like, requires_grad=False) for _ in self.kinds)
        return states

    def step(self, group: int) -> Tensor:
        """How often this group was updated: one float32, exact up to 16,777,216."""
        if group not in self._steps:
            device = "cpu" if self._host_steps else self._groups[group][0].device
            self._steps[group] = torch.zeros((), dtype=torch.float32, device=device)
        return self._steps[group]

    def prepare(self) -> None:
        """Make the states of all weights that are trained."""
        for index, group in enumerate(self._groups):
            trained = [weight for weight in group if weight.requires_grad]
            for weight in trained:
                self.of(weight)
            if trained and self.counts:
                self.step(index)

    def tensors(self) -> Iterator[Tensor]:
        """All of them that there are."""
        yield from self.masters.values()
        yield from (tensor for states in self._states.values() for tensor in states)
        yield from self._steps.values()

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors by name: RULE.STATE.WEIGHT, RULE.step.GROUP, master.WEIGHT.

        Of "sgd" the momentum is called by the weight's name alone. A weight that had no gradient yet may be missing.
        """
        state = {f"master.{self._names[weight]}": master for weight, master in self.masters.items()}
        made = ((weight, self._states[weight]) for group in self._groups for weight in group if weight in self._states)
        for weight, tensors in made:
            state |= {self._key(kind, weight): tensor for kind, tensor in zip(self.kinds, tensors, strict=True)}
        return state | {self._step_key(group): self._steps[group] for group in sorted(self._steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """See `Optimizer.load_state_dict`; states that are not in `state` become zeros, masters give their weights."""
        given = self._checked(state)
        for tensor in (*(tensor for states in self._states.values() for tensor in states), *self._steps.values()):
            tensor.zero_()
        for index, group in enumerate(self._groups):
            if self._step_key(index) in given:
                self.step(index).copy_(given[self._step_key(index)])
            for weight in group:
                if weight in self.masters:
                    weight.copy_(self.masters[weight].copy_(given[f"master.{self._names[weight]}"]))
                keys = [self._key(kind, weight) for kind in self.kinds]
                if any(key in given for key in keys):
                    for key, tensor in zip(keys, self.of(weight), strict=True):
                        tensor.copy_(given[key])

    def _key(self, kind: str, weight: nn.Parameter) -> str:
        return self._names[weight] if self._rule == "sgd" else f"{self._rule}.{kind}.{self._names[weight]}"

    def _step_key(self, group: int) -> str:
        return f"{self._rule}.step.{group}"

    def _checked(self, state: Mapping[str, object]) -> dict[str, Tensor]:
        """The state's tensors, all of them known here, of the right shape, and none missing."""
        shapes: dict[str, torch.Size] = {}
        needed = [f"master.{self._names[weight]}" for weight in self.masters]
        for index, group in enumerate(self._groups):
            moved = False
            for weight in group:
                keys = [self._key(kind, weight) for kind in self.kinds]
                shapes |= dict.fromkeys([*keys, f"master.{self._names[weight]}"], weight.shape)
                if weight not in self.masters:
                    del shapes[f"master.{self._names[weight]}"]
                if any(key in state for key in keys):
                    needed += keys
                    moved = True
            if self.counts:
                shapes[self._step_key(index)] = torch.Size()
                needed += [self._step_key(index)] if moved else []
        made = f"was it made with another model, or another optim.name than {self._rule!r}, or train.weights?"
        for key in needed:
            if key not in state:
                raise UserError(f"{key} is missing in the optimizer's state: {made}")
        given: dict[str, Tensor] = {}
        for key, value in state.items():
            if key not in shapes:
                raise UserError(f"{key} of the optimizer's state belongs to nothing here: {made}")
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shapes[key]:
                found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise UserError(
                    f"{key} of the optimizer's state is {found}, and numbers of shape {tuple(shapes[key])} are needed: "
                    f"{made}"
                )
            given[key] = value
        return given
