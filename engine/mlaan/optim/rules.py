"""From settings to the code that moves the weights of one call; this package's operators are here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from mlaan.config import AdamWConfig, LAMBConfig, LARSConfig, OptimConfig, SGDConfig
from mlaan_kernels.adamw_update import adamw_update
from mlaan_kernels.lamb_update import lamb_update
from mlaan_kernels.lars_update import lars_update
from mlaan_kernels.sgd_update import Twin as TwinTensor
from mlaan_kernels.sgd_update import sgd_update


@dataclass(frozen=True)
class Moving:
    """Weights that one call moves, with all it needs; what `mlaan_kernels.updates` says of these holds here.

    Attributes:
        weights: alike in dtype, on one device.
        grads: one for each, alike in dtype.
        masters: one for each bfloat16 weight, else empty.
        states: a list for each state of the rule (`state_names`), with a tensor for each weight.
        twins: they move first.
        learning_rate: a number, or one float32 on the device.
        step: the number of this update, from 1, as one float32, for rules that count; where finite is False, of the
            one before.
        scale: one float32 on the device that gradients are multiplied by, or None.
        finite: one bool on the device; where it is False nothing moves. None: everything does.
    """

    weights: Sequence[nn.Parameter]
    grads: Sequence[Tensor]
    masters: Sequence[Tensor]
    states: Sequence[Sequence[Tensor]]
    twins: Sequence[TwinTensor]
    learning_rate: float | Tensor
    step: Tensor | None
    scale: Tensor | None
    finite: Tensor | None

    @property
    def targets(self) -> Sequence[Tensor]:
        """What the rule works on: the masters where there are some."""
        return self.masters or self.weights


class Rule(Protocol):
    """Moves weights. `on_device`: learning rate and step are read on the device, and a CUDA graph may hold it."""

    on_device: bool

    def __call__(self, moving: Moving) -> None:
        """Move twins, then weights and states; without gradient mode."""
        ...


def make_rule(config: OptimConfig, weights: Sequence[Tensor]) -> Rule:
    """The rule of `optim.name` by the code of `optim.backend`.

    Raises:
        UserError: that code is not installed, or does not take such weights.
    """
    if config.backend == "torch":
        from mlaan.optim.by_torch import TorchRule

        return TorchRule(config)
    if config.backend == "apex":
        from mlaan.optim.by_apex import ApexRule

        return ApexRule(config, weights)
    return NativeRule(config)


def excluded(weight: Tensor) -> bool:
    """Whether LARS and LAMB leave decay and trust ratio away: biases, BatchNorm and LayerNorm, scales of layers."""
    return weight.ndim <= 1


class NativeRule:
    """All rules by the operators of mlaan_kernels, one call for weights and twins."""

    on_device = True

    def __init__(self, config: OptimConfig) -> None:
        self.config = config

    def __call__(self, moving: Moving) -> None:
        """See `Rule`."""
        match self.config:
            case SGDConfig() as sgd:
                sgd_update(
                    moving.weights,
                    moving.grads,
                    moving.states[0] if sgd.momentum else (),
                    moving.twins,
                    learning_rate=moving.learning_rate,
                    momentum=sgd.momentum,
                    nesterov=sgd.nesterov,
                    weight_decay=sgd.weight_decay,
                    masters=moving.masters,
                    grad_scale=moving.scale,
                    finite=moving.finite,
                )
            case LARSConfig() as lars:
                lars_update(
                    moving.weights,
                    moving.grads,
                    moving.states[0] if lars.momentum else (),
                    moving.twins,
                    learning_rate=moving.learning_rate,
                    momentum=lars.momentum,
                    weight_decay=lars.weight_decay,
                    trust=lars.trust,
                    excluded=[excluded(weight) for weight in moving.weights],
                    masters=moving.masters,
                    grad_scale=moving.scale,
                    finite=moving.finite,
                )
            case AdamWConfig() as adamw:
                assert moving.step is not None
                first, second = moving.states
                adamw_update(
                    moving.weights,
                    moving.grads,
                    first,
                    second,
                    moving.twins,
                    learning_rate=moving.learning_rate,
                    betas=cast(tuple[float, float], adamw.betas),
                    epsilon=adamw.epsilon,
                    weight_decay=adamw.weight_decay,
                    step=moving.step,
                    masters=moving.masters,
                    grad_scale=moving.scale,
                    finite=moving.finite,
                )
            case LAMBConfig() as lamb:
                assert moving.step is not None
                first, second = moving.states
                lamb_update(
                    moving.weights,
                    moving.grads,
                    first,
                    second,
                    moving.twins,
                    learning_rate=moving.learning_rate,
                    betas=cast(tuple[float, float], lamb.betas),
                    epsilon=lamb.epsilon,
                    weight_decay=lamb.weight_decay,
                    step=moving.step,
                    excluded=[excluded(weight) for weight in moving.weights],
                    masters=moving.masters,
                    grad_scale=moving.scale,
                    finite=moving.finite,
                )
            case other:
                raise AssertionError(f"{other} has no operator")
