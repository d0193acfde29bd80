"""Images whose labels are their numbers, some of which fail when they are read, and what the loader makes of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.batches import take
from data.official_files import smooth
from mlaan.data import ViewLoader
from mlaan.data.files import ImageFiles
from mlaan.data.store import Unreadable
from mlaan.data.views import ViewPlan

COUNT = 22
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def numbered(root):
    """22 images whose labels are their numbers."""
    random = np.random.RandomState(4)
    names = [f"{number:02}.jpg" for number in range(COUNT)]
    for name in names:
        Image.fromarray(smooth(*random.randint(20, 40, 2), random)).save(root / name, quality=95)
    return ImageFiles(root, np.array([name.encode() for name in names]), torch.arange(COUNT))


class Faulty:
    """Images of which some do something else when they are read."""

    def __init__(self, images, faults):
        self._images, self._faults, self.labels = images, faults, images.labels

    def __len__(self):
        return len(self._images)

    def name(self, index):
        return self._images.name(index)

    def read(self, index):
        if index in self._faults:
            self._faults[index]()
        return self._images.read(index)

    def fingerprint(self):
        return self._images.fingerprint()


def unreadable(*numbers):
    def fail(number):
        raise Unreadable(f"image {number}", "it is gone")

    return {number: lambda number=number: fail(number) for number in numbers}


def make(images, plan=ViewPlan(16, 18), **changes):  # noqa: B008 - frozen
    arguments = {
        "training": True,
        "batch": 4,
        "device": "cpu",
        "mean": MEAN,
        "std": STD,
        "seed": 3,
        "workers": 0,
    }
    return ViewLoader(images, plan, **(arguments | changes))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return numbered(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(files):
    return take(make(files), 12)
