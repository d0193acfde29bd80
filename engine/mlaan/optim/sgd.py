"""The optimizer: one module at a time, as soon as its gradients are complete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlaan.config import OptimConfig
from mlaan.learning import Twin
from mlaan_kernels.sgd_update import Twin as TwinTensor
from mlaan_kernels.sgd_update import sgd_update


@dataclass
class _Group:
    """What one Update moves: weights, and the twins that follow some of them."""

    weights: list[nn.Parameter]
    twins: list[tuple[nn.Parameter, Tensor, float]]


class SGD:
    """SGD with momentum over groups of weights that are updated one by one, twins first.

    A twin moves with the weights of before the step: twin <- keep * twin + (1 - keep) * weight.

    Args:
        groups: for each local module the weights of its Update, frozen ones too; each weight in one group.
        twins: every twin; it moves in the Update of its source's module.
        names: a name for every weight, for the state dict.
        config: momentum, Nesterov, weight decay, and the learning rate to start with.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        twins: Sequence[Twin],
        names: Mapping[nn.Parameter, str],
        config: OptimConfig,
    ) -> None:
        self.config, self.names = config, names
        self.learning_rate = config.learning_rate
        self.groups = [_Group(list(weights), []) for weights in groups]
        home = {id(weight): group for group in self.groups for weight in group.weights}
        for twin in twins:
            for tensor, weight in zip(twin.block.parameters(), twin.source.parameters(), strict=True):
                home[id(weight)].twins.append((weight, tensor, twin.keep))
        self.momenta: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def update(self, group: int) -> None:
        """Move the twins and weights of one group by the gradients in `.grad`, then clear these.

        A weight without a gradient stays, as in torch.optim; its twins still move.
        """
        weights = [weight for weight in self.groups[group].weights if weight.grad is not None]
        place = {id(weight): i for i, weight in enumerate(weights)}
        moving = []
        for weight, tensor, keep in self.groups[group].twins:
            if id(weight) in place:
                moving.append(TwinTensor(place[id(weight)], tensor, keep))
            else:
                tensor.mul_(keep).add_(weight, alpha=1 - keep)
        config = self.config
        sgd_update(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [self._momentum(weight) for weight in weights] if config.momentum else [],
            moving,
            learning_rate=self.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        for weight in weights:
            weight.grad = None

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        if weight not in self.momenta:
            self.momenta[weight] = torch.zeros_like(weight)
        return self.momenta[weight]

    def state_dict(self) -> dict[str, Tensor]:
        """Momentum by the weight's name."""
        return {self.names[weight]: momentum for weight, momentum in self.momenta.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over `state_dict()`'s momenta.

        Raises:
            KeyError: a name that no weight has.
        """
        by_name = {name: weight for weight, name in self.names.items()}
        self.momenta = {}
        for name, momentum in state.items():
            self.momenta[by_name[name]] = torch.empty_like(by_name[name]).copy_(momentum)
