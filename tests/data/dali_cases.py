"""Image files of every kind and shape, and what tells DALI's batches from the other loaders'."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from data.official_files import smooth
from mlaan.data import DaliLoader, ViewLoader, dali
from mlaan.data.files import ImageFiles, decode
from mlaan.data.views import ViewPlan

needs_dali = pytest.mark.skipif(dali.why_not() is not None, reason="needs NVIDIA DALI")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PLAN = ViewPlan(16, 18)


def write(root, name, height, width, seed, mode="RGB", **how):
    """A JPEG unless `how` says otherwise."""
    image = Image.fromarray(smooth(height, width, np.random.RandomState(seed)))
    image.convert(mode).save(root / name, **({"format": "JPEG", "quality": 95} | how))


def opened(root, names):
    """The files, whose labels are their numbers, as after a check."""
    sizes = [decode(os.path.join(root, name)).shape[1:] for name in names]
    encoded = np.array([os.fsencode(name) for name in names])
    return ImageFiles(root, encoded, torch.arange(len(names)), np.array(sizes, dtype=np.int32))


def plain(root, count):
    """Files of many sizes."""
    random = np.random.RandomState(4)
    names = [f"{number:02}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        write(root, name, *random.randint(20, 60, 2).tolist(), number)
    return opened(root, names)


def make(kind, files, plan=PLAN, **changes):
    """A loader of a kind, which says nothing."""
    arguments = {"training": True, "batch": 4, "device": "cpu", "mean": MEAN, "std": STD, "seed": 3}
    arguments |= {"workers": 1 if kind is DaliLoader else 0}
    loader = kind(files, plan, **(arguments | changes))
    loader.say = lambda line: None
    return loader


def both(files, plan=PLAN, workers=1, **changes):
    """DALI's loader, and the one that is to give the same."""
    return make(DaliLoader, files, plan, workers=workers, **changes), make(ViewLoader, files, plan, **changes)


def assert_alike(batches, others, most=1):
    """The same labels; images up to `most` of 255 levels, at the edges, beyond which DALI repeats them, a few more.

    There is one batch at least.
    """
    pairs = list(zip(batches, others, strict=True))
    assert pairs
    for batch, other in pairs:
        assert torch.equal(batch.labels.cpu(), other.labels.cpu())
        assert batch.images.shape == other.images.shape
        levels = (batch.images.cpu() - other.images.cpu()).abs() * torch.tensor(STD)[:, None, None] * 255
        assert levels[..., 1:-1, 1:-1].max() < most + 0.1
        assert levels.max() < 6


def threads():
    """How many this process has, those of libraries too."""
    return len(os.listdir("/proc/self/task"))
