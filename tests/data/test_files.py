"""Image files: what is decoded, and what cannot be."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.official_files import smooth
from mlaan.data.files import ImageFiles, decode
from mlaan.data.store import Unreadable


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1", "RGBA", "P"])
def test_decode_gives_three_channels(tmp_path, mode):
    array = smooth(20, 30, np.random.RandomState(0))
    kind = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
    path = tmp_path / "image.JPEG"
    Image.fromarray(array).convert(mode).save(path, kind, quality=95)
    decoded = decode(str(path))
    assert (decoded.dtype, decoded.shape) == (torch.uint8, (3, 20, 30))
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    assert int((decoded.int() - expected.int()).abs().max()) <= 3
    if mode == "L":
        assert torch.equal(decoded[0], decoded[1])


def test_decode_makes_8_bits_of_16(tmp_path):
    levels = np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    decoded = decode(str(tmp_path / "deep.png"))
    assert decoded.dtype == torch.uint8
    assert int((decoded[0].int() - torch.from_numpy((levels / 257).astype(np.int32))).abs().max()) <= 1


def test_a_turn_noted_in_the_file_is_not_made(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(smooth(20, 30, np.random.RandomState(0)))
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image.save(tmp_path / "plain.jpg", quality=95)
    assert torch.equal(decode(str(tmp_path / "turned.jpg")), decode(str(tmp_path / "plain.jpg")))


@pytest.mark.parametrize("fault", ["cut", "empty", "text", "missing", "gif", "folder"])
def test_a_file_that_cannot_be_decoded_says_which_and_why_in_one_line(tmp_path, fault):
    path = tmp_path / "5.jpg"
    image = Image.fromarray(smooth(30, 30, np.random.RandomState(0)))
    if fault == "gif":
        other = Image.fromarray(smooth(30, 30, np.random.RandomState(1)))
        image.save(path, "GIF", save_all=True, append_images=[other])
    elif fault == "folder":
        path.mkdir()
    elif fault != "missing":
        image.save(path)
        content = path.read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not an image"}[fault])
    with pytest.raises(Unreadable) as caught:
        ImageFiles(tmp_path, np.array([b"5.jpg"]), torch.tensor([0])).read(0)
    assert (caught.value.name, bool(caught.value.reason)) == (str(path), True)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    reasons = {
        "empty": "it is empty",
        "text": "no JPEG, PNG or WebP",
        "missing": "No such file or directory",
        "gif": "it holds 2 pictures",
    }
    assert caught.value.reason == reasons.get(fault, caught.value.reason)


def test_the_fingerprint_changes_with_names_order_and_labels(tmp_path):
    names, labels = np.array([b"a.jpg", b"b.jpg"]), torch.tensor([0, 1])
    first = ImageFiles(tmp_path, names, labels)
    assert first.fingerprint() == ImageFiles(tmp_path / "elsewhere", names.copy(), labels.clone()).fingerprint()
    others = [
        ImageFiles(tmp_path, names[::-1].copy(), labels),
        ImageFiles(tmp_path, names, labels.flip(0)),
        ImageFiles(tmp_path, np.array([b"a.jpg", b"c.jpg"]), labels),
    ]
    assert first.fingerprint() not in [other.fingerprint() for other in others]
