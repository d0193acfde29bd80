"""Small IDX files, right and wrong ones."""

import gzip
import struct

import numpy as np

NAMES = {
    ("train", 3): "train-images-idx3-ubyte",
    ("train", 1): "train-labels-idx1-ubyte",
    ("t10k", 3): "t10k-images-idx3-ubyte",
    ("t10k", 1): "t10k-labels-idx1-ubyte",
}


def idx_bytes(array):
    """The array of bytes as an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_set(folder, train=30, test=10, size=28, zipped=False):
    """A whole data set of random images; gives its arrays by file name."""
    random = np.random.RandomState(1)
    arrays = {}
    for part, count in ("train", train), ("t10k", test):
        arrays[NAMES[part, 3]] = random.randint(0, 256, (count, size, size)).astype(np.uint8)
        arrays[NAMES[part, 1]] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        data = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays
