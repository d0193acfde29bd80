"""The config tree: one frozen dataclass per section, with every default that `mlaan train` alone uses."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mlaan.config.choice import Choice, setting
from mlaan.config.optim import OptimConfig
from mlaan.config.sizes import bytes_of
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

    limit: str = setting(
        "", "most memory that a plan may take, such as 12GiB; empty: what the device has. A plan beyond it is refused"
    )

    def __post_init__(self) -> None:
        if self.limit:
            bytes_of(self.limit, "memory.limit")
        if (self.schedule == "windowed") != (self.window > 0):
            raise UserError(
                f"memory.window = {self.window} does not fit memory.schedule = {self.schedule!r}: "
                "set memory.window with the windowed schedule, and only there"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How long, where, and from which random start."""

    epochs: int = setting(20, "passes over the training images")
    seed: int = setting(0, "start of every random choice: weights, order of images, augmentation")
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = setting(
        "float32",
        "float32: exactly so; tf32: the GPU's short float32 in convolutions and matrix products; bfloat16, float16: "
        "modules and heads run under autocast, float16 with a scale for each loss; losses and updates stay float32",
    )
    weights: Literal["float32", "bfloat16"] = setting(
        "float32",
        "bfloat16: convolutions' and linear layers' weights are held so, and their float32 masters by the optimizer",
    )
    channels_last: bool = setting(False, "lay weights and images out as (N, H, W, C): often faster for convolutions")
    kernels: Literal["auto", "reference", "triton"] = setting(
        "auto",
        "auto: fused Triton kernels on a GPU, for the blocks and losses that have them; triton: insist on them; "
        "reference: PyTorch's own",
    )
    compile: Literal["off", "modules"] = setting(
        "off", "modules: torch.compile for the parts that no fused kernels run; its first steps take minutes"
    )
    executor: Literal["eager", "streams", "graph"] = setting(
        "eager",
        "eager: one task after the other; streams: tasks beside each other on a GPU; graph: the whole step as one CUDA "
        "graph, which pays for small networks",
    )
    test_every: int = setting(1, "epochs from one test to the next; the last epoch is always tested")
    label_smoothing: float = setting(
        0.0, "share of every label that is spread evenly over the classes, in every local loss; 0.1 is usual"
    )
    mixup: float = setting(
        0.0,
        "above 0: training images and labels are mixed in pairs, by a share from Beta(mixup, mixup), such as 0.2; "
        "with cutmix too each batch gets one of the two",
    )
    cutmix: float = setting(
        0.0, "above 0: a box of another image is pasted into each, its area drawn from Beta(cutmix, cutmix); 1 is usual"
    )
    accumulate: int = setting(
        1,
        "parts that a batch is cut into, run one after the other before one update, for less memory; BatchNorm sees "
        "each part by itself, twins and weights move once",
    )
    average: float = setting(
        0.0,
        "above 0: a moving average of the backbone's weights with this decay is kept, tested and exported in their "
        "place; 0.9999 is usual for long runs",
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "test_every", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} = {getattr(self, name)} must be at least 1")
        for name in ("label_smoothing", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name} = {getattr(self, name)} must be from 0 to below 1")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"train.{name} = {getattr(self, name)} must be 0 or a finite number above it")
        if self.weights == "bfloat16" and self.precision != "bfloat16":
            raise UserError(
                f"train.weights = 'bfloat16' goes with train.precision = 'bfloat16', not {self.precision!r}"
            )


@dataclass(frozen=True)
class RunConfig:
    """The run folder and what is written there."""

    folder: str = setting("", "run folder; empty: runs/<data>-<model>-<method>-<time>")
    checkpoint_minutes: float = setting(5.0, "minutes between checkpoints; one is also written after every epoch")
    keep: int = setting(3, "newest checkpoints to keep, in checkpoints/, besides the best one")
    on_nan: Literal["stop", "rollback"] = setting(
        "stop",
        "when a loss is not finite any more, the step that did it is looked for and saved for `mlaan replay`; then "
        "stop: the run ends; rollback: it goes on from before that step, without its batch, up to three times an epoch",
    )
    tensorboard: bool = setting(True, "write TensorBoard logs, where the package is installed")

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError(f"run.keep = {self.keep} must be at least 1")
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
    optim: OptimConfig = field(default_factory=lambda: OptimConfig.make("sgd"))
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.optim.warmup_epochs >= self.train.epochs:
            raise UserError(
                f"optim.warmup_epochs = {self.optim.warmup_epochs} must be below train.epochs = {self.train.epochs}: "
                f"set optim.warmup_epochs = {max(0, self.train.epochs - 1)}, or train for longer"
            )
        growing = getattr(self.data, "grow_epochs", 0)  # of image folders alone
        if growing >= self.train.epochs:
            raise UserError(
                f"data.grow_epochs = {growing} must be below train.epochs = {self.train.epochs}: the last epochs are "
                f"to have images of data.size; set data.grow_epochs = {self.train.epochs - 1}, or train for longer"
            )
        if self.optim.backend == "apex" and self.train.executor == "graph":
            raise UserError(
                "optim.backend = 'apex' takes its numbers from Python and cannot run inside a CUDA graph: set "
                "optim.backend = 'native', or train.executor = 'streams'"
            )
        if self.optim.backend == "apex" and self.optim.name == "lamb" and self.train.precision == "float16":
            raise UserError(
                "optim.backend = 'apex' cannot leave out a step of optim.name = 'lamb', as train.precision = 'float16' "
                "needs it: set optim.backend = 'native'"
            )
