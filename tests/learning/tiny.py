"""Small engines for the tests of methods."""

import torch
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer

from mlaan import Engine
from mlaan.config import MethodConfig
from mlaan.learning import LocalLoss
from mlaan.models import Backbone, CifarResNet
from mlaan.models.vit import vit_backbone

NORMALISATION = ((0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
SIDE = 8


def make(method: MethodConfig, modules: int = 3, backbone: Backbone | None = None, **settings: object) -> Engine:
    """ResNet-14 (six blocks), or another backbone, for images of 8 x 8; all draws are seeded."""
    torch.manual_seed(0)
    settings = {"input_shape": (3, SIDE, SIDE), "normalisation": NORMALISATION, "learning_rate": 0.05} | settings
    return Engine(backbone or CifarResNet(14), method, modules, **settings)  # pyright: ignore[reportArgumentType]


def make_vit(method: MethodConfig, **settings: object) -> Engine:
    """A transformer of four layers over 16 patches and a class token, 16 channels wide."""
    torch.manual_seed(0)
    net = VisionTransformer(SIDE, 2, 4, 2, 16, 32, num_classes=10)
    return make(method, 3, vit_backbone(net, "tiny_vit"), **({"learning_rate": 0.02} | settings))


def batch(samples: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose pixels are from 0 to 1 before their normalisation, and labels of four classes."""
    pixels = torch.rand(samples, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in NORMALISATION)
    return (pixels - mean) / deviation, torch.arange(samples) % 4


def ratios(engine: Engine, steps: int = 12) -> Tensor:
    """What is left of every loss after some steps on one batch, as a share of what it was."""
    results = [engine.step(*batch()) for _ in range(steps)]
    return results[-1].losses / results[0].losses


def listed(losses: tuple[LocalLoss, ...]) -> list[tuple[str, int, float]]:
    """Name, reach and weight of every loss."""
    return [(loss.name, loss.reach, loss.weight) for loss in losses]
