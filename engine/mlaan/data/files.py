"""Images as files below one folder."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlaan.data.store import Unreadable


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files below one folder, kept so compactly that every worker can share a million of them."""

    root: Path
    names: np.ndarray
    """(N,) bytes: paths below `root`."""
    labels: Tensor
    """(N,) int64."""
    sizes: np.ndarray | None = None
    """(N, 2) int32: height and width, where they are known."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def name(self, index: int) -> str:
        return self.path(index)

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8; raises Unreadable."""
        return decode(self.path(index))

    def fingerprint(self) -> int:
        """32 bits that change with the names, their order and the labels."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.names.tobytes()))


def decode(path: str) -> Tensor:
    """The image of a file, (3, H, W) uint8; grey ones get three equal channels; a turn noted in EXIF is not made.

    Raises Unreadable where it cannot be read or decoded.
    """
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import to_dtype

    try:
        # torchvision itself knows only names in UTF-8, and maps the file, so that a failing disk kills the process.
        content = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
        if not len(content):
            raise Unreadable(path, "it is empty")
        image = decode_image(content, ImageReadMode.RGB)
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error)) from None
    except RuntimeError as error:
        is_other = "Unsupported image file" in str(error)
        raise Unreadable(path, "no JPEG, PNG or WebP" if is_other else str(error)) from None
    if image.ndim != 3:
        raise Unreadable(path, f"it holds {len(image)} pictures")
    return to_dtype(image, torch.uint8, scale=True)  # PNG files may have 16 bits
