"""Random and central parts of an image against Pillow and against torchvision's own drawing."""

import math
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mlaan.data.views import CentreView, RandomView, ViewPlan, random_box

SHAPES = [(40, 60), (60, 40), (51, 51), (224, 300)]


def image(height, width):
    """(3, height, width) uint8, the same as a Pillow image; noise, so that antialiasing shows."""
    array = np.random.RandomState(height).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1), Image.fromarray(array)


def distance(view, reference):
    """Greatest difference in grey levels."""
    return int((view.int() - torch.from_numpy(np.array(reference)).permute(2, 0, 1).int()).abs().max())


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_random_view_is_its_box_resized(height, width, seed):
    tensor, picture = image(height, width)
    top, left, rows, columns = random_box(height, width, Random(seed))
    part = picture.crop((left, top, left + columns, top + rows)).resize((32, 32), Image.Resampling.BILINEAR)
    view = RandomView(32)(tensor, Random(seed))
    assert (view.dtype, view.shape) == (torch.uint8, (3, 32, 32))
    assert distance(view, part) <= 2


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_centre_view_is_the_middle_of_the_resized_image(height, width):
    tensor, picture = image(height, width)
    shorter = min(height, width)
    rows, columns = int(37 * height / shorter), int(37 * width / shorter)
    resized = picture.resize((columns, rows), Image.Resampling.BILINEAR)
    top, left = round((rows - 32) / 2), round((columns - 32) / 2)
    view = CentreView(32, 37)(tensor, Random(0))
    assert (view.dtype, view.shape) == (torch.uint8, (3, 32, 32))
    assert distance(view, resized.crop((left, top, left + 32, top + 32))) <= 2


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (90, 400)])
def test_boxes_are_distributed_like_torchvisions(height, width):
    count = 4000
    random = Random(1)
    ours = torch.tensor([random_box(height, width, random) for _ in range(count)], dtype=torch.float64)
    torch.manual_seed(0)
    draw = v2.RandomResizedCrop(32)
    blank = torch.empty(3, height, width, dtype=torch.uint8)
    theirs = [draw.make_params([blank]) for _ in range(count)]
    theirs = torch.tensor([[box[key] for key in ("top", "left", "height", "width")] for box in theirs]).double()
    for column, scale in enumerate((height, width, height, width)):
        for share in (0.1, 0.5, 0.9):
            # The standard error of the median of 4000 is below 0.01 of the range for these distributions.
            gap = (ours[:, column].quantile(share) - theirs[:, column].quantile(share)).abs() / scale
            assert gap < 0.04, (column, share)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (1, 1), (1, 300), (300, 1), (20, 400), (7, 5)])
def test_boxes_lie_within_the_image(height, width):
    random = Random(2)
    for _ in range(300):
        top, left, rows, columns = random_box(height, width, random)
        assert 0 <= top <= top + rows <= height
        assert 0 <= left <= left + columns <= width
        assert rows > 0
        assert columns > 0


def test_a_shape_that_never_fits_gives_the_middle():
    assert random_box(10, 1000, Random(0)) == (0, (1000 - 13) // 2, 10, 13)
    assert random_box(1000, 10, Random(0)) == ((1000 - 13) // 2, 0, 13, 10)


def test_areas_and_shapes_cover_their_ranges():
    random = Random(3)
    boxes = [random_box(400, 400, random) for _ in range(2000)]
    areas = [rows * columns / 400**2 for _, _, rows, columns in boxes]
    ratios = [math.log(columns / rows) for _, _, rows, columns in boxes]
    assert 0.079 < min(areas) < 0.09
    assert max(areas) > 0.95
    assert -math.log(4 / 3) - 0.02 < min(ratios) < -0.26
    assert 0.26 < max(ratios) < math.log(4 / 3) + 0.02
    assert abs(sum(ratios) / 2000) < 0.02


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        (ViewPlan(224, 256), [224, 224, 224]),
        (ViewPlan(224, 256, 128, 6), [128, 128, 160, 160, 192, 192, 224, 224]),
        (ViewPlan(224, 256, 112, 3), [112, 128, 160, 224]),
        (ViewPlan(64, 73, 32, 4), [32, 40, 48, 56, 64, 64]),
        (ViewPlan(32, 36, 30, 2), [30, 30, 32]),
        (ViewPlan(300, 343, 128, 3), [128, 160, 224, 300, 300]),
    ],
)
def test_sizes_grow_evenly_in_whole_steps_to_the_last(plan, sizes):
    epochs = range(len(sizes))
    assert [plan.size_at(epoch) for epoch in epochs] == sizes
    assert [plan.train_view(epoch) for epoch in epochs] == [RandomView(size) for size in sizes]
    assert plan.sizes() == sorted({*sizes})
    assert plan.test_view() == CentreView(plan.size, plan.resize)
