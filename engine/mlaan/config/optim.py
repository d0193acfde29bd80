"""Settings of the optimizers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mlaan.config.choice import Choice, setting
from mlaan.errors import UserError


@dataclass(frozen=True)
class OptimConfig(Choice):
    """The optimizer."""

    backends: ClassVar[tuple[str, ...]] = ("native",)
    """Whose code has this rule."""

    learning_rate: float = setting(0.05, "learning rate after warm-up")
    weight_decay: float = setting(1e-4, "how strongly weights are pulled to 0: see docs/optimizers.md")
    schedule: Literal["cosine", "constant", "recipe"] = setting(
        "cosine",
        "cosine: per epoch down to 0; constant: no decay; recipe: cosine and warm-up to the letter of the published "
        "codes for CIFAR-10, SVHN and STL-10",
    )
    warmup_epochs: int = setting(0, "epochs of linear warm-up")
    clip: Literal["off", "module", "global"] = setting(
        "off",
        "scale gradients down to clip_norm: those of each local module by their own norm, or all by their common one, "
        "for which every update waits",
    )
    clip_norm: float = setting(1.0, "largest norm that clipping leaves alone")
    backend: Literal["native", "torch", "apex"] = setting(
        "native", "native: this package's operators; torch: torch.optim; apex: NVIDIA's, installed from its sources"
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise UserError(f"optim.{name} = {getattr(self, name)} must not be negative")
        if self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm = {self.clip_norm} must be above 0")
        if self.backend not in self.backends:
            has = [other.name for other in OptimConfig.choices.values() if self.backend in other.backends]
            raise UserError(
                f"optim.backend = {self.backend!r} has no {self.name!r}: set optim.backend = 'native', or optim.name = "
                f"{' or '.join(map(repr, has))}"
            )


@dataclass(frozen=True)
class SGDConfig(OptimConfig, name="sgd"):
    """Stochastic gradient descent with momentum."""

    backends: ClassVar[tuple[str, ...]] = ("native", "torch", "apex")
    momentum: float = setting(0.9, "momentum, 0 to below 1")
    nesterov: bool = setting(True, "Nesterov's form of momentum")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self.momentum)
        if self.nesterov and self.momentum == 0:
            raise UserError("optim.nesterov = true needs optim.momentum > 0: set optim.nesterov = false")


@dataclass(frozen=True)
class LARSConfig(OptimConfig, name="lars"):
    """LARS (You, Gitman and Ginsburg 2017): SGD for large batches, with a rate of its own for each weight."""

    learning_rate: float = setting(2.0, "learning rate after warm-up, of which each weight takes a share")
    momentum: float = setting(0.9, "momentum, 0 to below 1")
    trust: float = setting(0.001, "length of a step at learning rate 1 over the length of the weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self.momentum)
        if self.trust <= 0:
            raise UserError(f"optim.trust = {self.trust} must be above 0")


@dataclass(frozen=True)
class AdamWConfig(OptimConfig, name="adamw"):
    """AdamW (Loshchilov and Hutter 2019)."""

    backends: ClassVar[tuple[str, ...]] = ("native", "torch")
    learning_rate: float = setting(0.001, "learning rate after warm-up")
    weight_decay: float = setting(0.01, "learning_rate times it is the share of a weight that goes in a step")
    betas: tuple[float, ...] = setting((0.9, 0.999), "shares of the old moments that stay")
    epsilon: float = setting(1e-8, "added to the root of the second moment")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_adam(self.betas, self.epsilon)


@dataclass(frozen=True)
class LAMBConfig(OptimConfig, name="lamb"):
    """LAMB (You et al. 2020): AdamW for large batches, with steps as long as learning_rate times the weight."""

    backends: ClassVar[tuple[str, ...]] = ("native", "apex")
    learning_rate: float = setting(0.01, "learning rate after warm-up")
    weight_decay: float = setting(0.01, "times the weight, added to Adam's direction")
    betas: tuple[float, ...] = setting((0.9, 0.999), "shares of the old moments that stay")
    epsilon: float = setting(1e-6, "added to the root of the second moment")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_adam(self.betas, self.epsilon)


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise UserError(f"optim.momentum = {momentum} must be from 0 to below 1")


def _check_adam(betas: tuple[float, ...], epsilon: float) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas = {list(betas)} must be two numbers from 0 to below 1, such as [0.9, 0.999]")
    if epsilon <= 0:
        raise UserError(f"optim.epsilon = {epsilon} must be above 0")
