"""What a file is said to be."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from data.imagenet_folder import make_folder
from data.official_files import smooth
from mlaan.data import findings
from mlaan.data.findings import Finding, inspect

SAID = {
    "grey": "grey",
    "cmyk": "CMYK",
    "rotated": "turned by EXIF",
    "progressive": "good",
    "png": "not JPEG",
    "empty": "empty",
    "truncated": "truncated",
    "text": "no image",
    "one_pixel": "tiny",
}


def photograph(height=20, width=30):
    return Image.fromarray(smooth(height, width, np.random.RandomState(0)))


def test_every_odd_and_bad_file_of_a_folder_gets_its_name_and_its_size(tmp_path):
    made = make_folder(tmp_path, classes=3, train=13, val=12, sides=(30, 90))
    kinds = {**made.odd, **made.bad}
    assert {*kinds.values()} == {*SAID}
    for path in (*made.good["train"], *made.good["val"], *made.bad):
        kind, *size = inspect(str(tmp_path / path))
        assert kind == SAID.get(kinds.get(path, ""), "good"), path
        if kind in ("empty", "truncated", "no image"):
            assert size == [0, 0]
        else:
            with Image.open(tmp_path / path) as image:
                assert tuple(size) == image.size[::-1], path


def test_a_place_where_no_file_can_be_read_is_unreadable(tmp_path, monkeypatch):
    (tmp_path / "link.JPEG").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.JPEG").mkdir()
    for name in ("link", "folder", "gone"):
        assert inspect(str(tmp_path / f"{name}.JPEG")) == Finding("unreadable")
    photograph().save(tmp_path / "nowhere", "JPEG")
    assert inspect(str(tmp_path / "link.JPEG")) == Finding("good", 20, 30)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(findings, "open", refuse, raising=False)  # root may read whatever the rights are
    assert inspect(str(tmp_path / "nowhere")) == Finding("unreadable")


@pytest.mark.parametrize(
    ("height", "width", "kind"), [(3, 50, "tiny"), (50, 3, "tiny"), (4, 50, "good"), (50, 4, "good")]
)
def test_tiny_is_a_side_below_four_pixels(tmp_path, height, width, kind):
    photograph(height, width).save(tmp_path / "a.JPEG")
    assert inspect(str(tmp_path / "a.JPEG")) == Finding(kind, height, width)


@pytest.mark.parametrize(("form", "cut"), [("JPEG", 1), ("JPEG", 2), ("JPEG", 500), ("PNG", 100), ("WEBP", 100)])
def test_a_file_that_lacks_its_end_is_truncated(tmp_path, form, cut):
    path = tmp_path / "a.JPEG"
    photograph(40, 40).save(path, form)
    assert inspect(str(path)) == Finding("good" if form == "JPEG" else "not JPEG", 40, 40)
    path.write_bytes(path.read_bytes()[:-cut])
    assert inspect(str(path)) == Finding("truncated")


def test_what_torchvision_does_not_decode_is_no_image(tmp_path):
    path = tmp_path / "a.JPEG"
    path.write_bytes(b"\xff")
    assert inspect(str(path)) == Finding("no image")
    photograph().save(path, "BMP")
    assert inspect(str(path)) == Finding("no image")
    photograph().save(path, "GIF", save_all=True, append_images=[photograph().rotate(180)])
    assert inspect(str(path)) == Finding("no image"), "it is whole, but of two pictures"


@pytest.mark.parametrize("orientation", range(10))
def test_only_the_turns_that_exif_knows_are_odd(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph().save(tmp_path / "a.JPEG", exif=exif)
    assert inspect(str(tmp_path / "a.JPEG")).kind == ("turned by EXIF" if 2 <= orientation <= 8 else "good")


@pytest.mark.parametrize("fault", ["a large image", "a very large image", "damaged EXIF", "no EXIF at all"])
def test_what_pillow_stumbles_over_is_good_where_it_is_decoded(tmp_path, monkeypatch, fault):
    path = tmp_path / "a.JPEG"
    damaged = {"damaged EXIF": b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\x03\0", "no EXIF at all": b"Exif\0\0MM\0\0"}
    photograph(60, 70).save(path, exif=damaged.get(fault, b""))
    if limit := {"a large image": 4000, "a very large image": 1000}.get(fault):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # twice as many are an error, fewer a warning
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert inspect(str(path)) == Finding("good", 60, 70)
    assert not said


@pytest.mark.parametrize("name", [b"with two  spaces.JPEG", "Grüße 猫.JPEG".encode(), b"caf\xe9.JPEG"])
def test_any_name_will_do(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        photograph().save(file, "JPEG")
    assert inspect(os.fsdecode(path)) == Finding("good", 20, 30)
