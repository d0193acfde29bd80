"""The config tree: one frozen dataclass per section, with every default that `mlaan train` alone uses."""

from dataclasses import dataclass, field
from typing import Literal

from mlaan.config.choice import Choice, setting
from mlaan.errors import UserError


class DataConfig(Choice):
    """The data set."""


class MethodConfig(Choice):
    """The training method: a list of local losses, each with a reach."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone."""

    name: str = setting(
        "resnet20",
        "resnet20 to resnet1202, vgg16_cifar (small images); resnet50, vgg16_bn, convnext_tiny, vit_s_16 (large); "
        "timm:NAME; or your own, FILE.py:FUNCTION: docs/backbones.md lists all",
    )
    weights: str = setting(
        "", "empty: drawn at random; pretrained: for ImageNet, from torchvision or timm; or a .safetensors or .pth file"
    )


@dataclass(frozen=True)
class PartitionConfig:
    """Where the backbone is cut into local modules."""

    modules: int = setting(4, "number K of local modules")
    cuts: Literal["even", "flops", "bytes", "published"] | tuple[int, ...] = setting(
        "even",
        "even: equal block counts; flops or bytes: balanced by forward FLOPs or saved bytes; published: the paper's "
        "own cut; or the first block of every module, such as [0, 3, 5]",
    )

    def __post_init__(self) -> None:
        if self.modules < 1:
            raise UserError(f"partition.modules = {self.modules} must be at least 1")


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept between a module's forward and its backward."""

    schedule: Literal["lean", "windowed", "full"] = setting(
        "lean", "lean: fewest modules alive; full: all alive; windowed: memory.window of them"
    )
    window: int = setting(0, "live window of the windowed schedule: from the largest reach to the number of modules")
    recompute: Literal["none", "fused", "once", "each"] = setting(
        "none",
        "none: keep all; fused: keep convolutions' and blocks' outputs, rebuild BatchNorm and ReLU in the backward's "
        "kernels; once, each: keep a module's input, rebuild the rest before its first backward, or for each",
    )

    def __post_init__(self) -> None:
        if (self.schedule == "windowed") != (self.window > 0):
            raise UserError(
                f"memory.window = {self.window} does not fit memory.schedule = {self.schedule!r}: "
                "set memory.window with the windowed schedule, and only there"
            )


@dataclass(frozen=True)
class OptimConfig:
    """Stochastic gradient descent with momentum."""

    learning_rate: float = setting(0.05, "learning rate after warm-up")
    momentum: float = setting(0.9, "momentum, 0 to below 1")
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    weight_decay: float = setting(1e-4, "L2 penalty on every weight")
    schedule: Literal["cosine", "constant", "recipe"] = setting(
        "cosine",
        "cosine: per epoch down to 0; constant: no decay; recipe: cosine and warm-up to the letter of the published "
        "codes for CIFAR-10, SVHN and STL-10",
    )
    warmup_epochs: int = setting(0, "epochs of linear warm-up")

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise UserError(f"optim.learning_rate = {self.learning_rate} must not be negative")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optim.momentum = {self.momentum} must be from 0 to below 1")
        if self.nesterov and self.momentum == 0:
            raise UserError("optim.nesterov = true needs optim.momentum > 0: set optim.nesterov = false")
        if self.weight_decay < 0:
            raise UserError(f"optim.weight_decay = {self.weight_decay} must not be negative")
        if self.warmup_epochs < 0:
            raise UserError(f"optim.warmup_epochs = {self.warmup_epochs} must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """How long, where, and from which random start."""

    epochs: int = setting(20, "passes over the training images")
    seed: int = setting(0, "start of every random choice: weights, order of images, augmentation")
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "bfloat16: modules and heads run under autocast; weights, losses and updates stay float32"
    )
    channels_last: bool = setting(False, "lay weights and images out as (N, H, W, C): often faster for convolutions")
    kernels: Literal["auto", "reference", "triton"] = setting(
        "auto",
        "auto: fused Triton kernels on a GPU, for the blocks and losses that have them; triton: insist on them; "
        "reference: PyTorch's own",
    )
    test_every: int = setting(1, "epochs from one test to the next; the last epoch is always tested")

    def __post_init__(self) -> None:
        for name in ("epochs", "test_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} = {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class RunConfig:
    """The run folder and what is written there."""

    folder: str = setting("", "run folder; empty: runs/<data>-<model>-<method>-<time>")
    checkpoint_minutes: float = setting(5.0, "minutes between checkpoints; one is also written after every epoch")
    tensorboard: bool = setting(True, "write TensorBoard logs, where the package is installed")

    def __post_init__(self) -> None:
        if self.checkpoint_minutes <= 0:
            raise UserError(f"run.checkpoint_minutes = {self.checkpoint_minutes} must be above 0")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig.make("digits"))
    method: MethodConfig = field(default_factory=lambda: MethodConfig.make("mlaan"))
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.optim.warmup_epochs >= self.train.epochs:
            raise UserError(
                f"optim.warmup_epochs = {self.optim.warmup_epochs} must be below train.epochs = {self.train.epochs}: "
                f"set optim.warmup_epochs = {max(0, self.train.epochs - 1)}, or train for longer"
            )
