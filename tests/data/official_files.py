"""Small files in the true on-disk formats of the published data sets; each writer gives what it wrote."""

import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

import mlaan.data  # noqa: F401  (defines the members)
from mlaan.config import DataConfig, load

MEMBERS = [name for name, member in DataConfig.choices.items() if member.__module__.startswith("mlaan.data.")]
"""Every data set of the package; tests may define others."""
CIFAR10_FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
CIFAR100_FILES = ["train", "test"]


@dataclass(frozen=True)
class _Settings:
    data: DataConfig = field(default_factory=lambda: DataConfig.make("digits"))


def data_section(tmp_path, name, root, **fields):
    """The data section of a config file that says this; fields are written as TOML writes them."""
    file = tmp_path / "config.toml"
    lines = "".join(f"{key} = {value}\n" for key, value in fields.items())
    file.write_text(f'[data]\nname = "{name}"\nroot = "{root}"\n{lines}')
    return load(_Settings, file, []).data


def pictures(count, size, seed):
    """uint8 (count, 3, size, size), different in every pixel."""
    return np.random.RandomState(seed).randint(0, 256, (count, 3, size, size)).astype(np.uint8)


def write_cifar(root, folder, names, key, classes, count=20):
    """Python 2's pickles, `count` images each; images (N, 3, 32, 32) and labels by file."""
    (root / folder).mkdir(parents=True)
    written = {}
    for number, name in enumerate(names):
        images, labels = pictures(count, 32, number), (np.arange(count) * (number + 3)) % classes
        entries = {"batch_label": f"{name} of {len(names)}", key: labels.tolist(), "data": images.reshape(count, -1)}
        if key == "fine_labels":
            entries["coarse_labels"] = (labels // 5).tolist()
        (root / folder / name).write_bytes(python2_pickle(entries))
        written[name] = images, labels
    return written


def write_cifar10(root, **changes):
    return write_cifar(root, "cifar-10-batches-py", CIFAR10_FILES, "labels", 10, **changes)


def write_cifar100(root, **changes):
    return write_cifar(root, "cifar-100-python", CIFAR100_FILES, "fine_labels", 100, **changes)


def python2_pickle(entries):
    """A dict of texts, lists of int and uint8 arrays as Python 2's protocol 2 wrote it, texts being bytes there."""
    body = b"".join(_text(key) + _value(value) for key, value in entries.items())
    return b"\x80\x02}(" + body + b"u."


def _value(value):
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_integer, value)) + b"e"
    shape = b"".join(map(_integer, value.shape)) + {1: b"\x85", 2: b"\x86"}[value.ndim]
    kind = b"cnumpy\ndtype\n" + _text("u1") + b"K\x00K\x01\x87R(K\x03" + _text("|") + b"NNN"
    kind += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = value.tobytes()
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text("b") + b"\x87R"
    return start + b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"


def _text(text):
    return b"U" + bytes([len(text)]) + text.encode()


def _integer(number):
    return b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)


def write_stl10(root, train=10, test=6):
    """Images (N, 3, 96, 96) and labels from 0, by part. On the disk columns come first and labels start at 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    written = {}
    for part, count in ("train", train), ("test", test):
        images, labels = pictures(count, 96, count), (np.arange(count) * 3) % 10
        with (folder / f"{part}_X.bin").open("wb") as file:
            for image in images:
                for channel in image:
                    file.write(b"".join(channel[:, column].tobytes() for column in range(96)))
        (folder / f"{part}_y.bin").write_bytes(bytes(label + 1 for label in labels.tolist()))
        written[part] = images, labels
    return written


def write_svhn(root, train=30, test=12):
    """Images (N, 3, 32, 32) and labels by part. On the disk images come last and the digit 0 is called 10."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, count in ("train", train), ("test", test):
        images, labels = pictures(count, 32, count), (np.arange(count) * 7) % 10
        names = np.where(labels == 0, 10, labels).astype(np.uint8)
        content = {"X": images.transpose(2, 3, 1, 0), "y": names[:, None]}
        savemat(root / f"{part}_32x32.mat", content, do_compression=True)
        written[part] = images, labels
    return written


def write_images(root, classes=3, train=4, test=2):
    """train/<class>/*.JPEG and val/<class>/*.JPEG of many sizes; one file of four is grey, one CMYK, one a PNG."""
    random = np.random.RandomState(2)
    for part, count in ("train", train), ("val", test):
        for label in range(classes):
            folder = root / part / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = random.randint(20, 60, 2).tolist()
                image = Image.fromarray(smooth(height, width, random), "RGB")
                mode = ("RGB", "L", "CMYK", "RGB")[number % 4]
                kind = "PNG" if number % 4 == 3 else "JPEG"
                image.convert(mode).save(folder / f"{folder.name}_{number}.JPEG", kind, quality=95)


def smooth(height, width, random):
    """uint8 (height, width, 3) without sharp edges, so that JPEG keeps it."""
    rows, columns = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)[None]
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in random.uniform(0.5, 2, (3, 3))]
    return (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)
