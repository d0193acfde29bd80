"""The losses on whole batches, held against slow loops in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from mlaan.learning.criteria import reconstruction, unnormalised
from mlaan_kernels.contrast_loss import contrast_loss
from mlaan_kernels.contrast_loss.reference import _unit_rows as unit_rows
from mlaan_kernels.similarity_loss import similarity_loss
from mlaan_kernels.similarity_loss.reference import _directions

CLASSES = 5
LABELS = {
    "random": [3, 0, 3, 1, 0, 3, 1, 0],
    "one_member": [2, 0, 0, 1, 1, 0, 1, 0],  # class 2
    "one_class": [4] * 6,
    "all_different": [0, 1, 2, 3, 4],
    "pair": [1, 1],
    "one_image": [3],
}
every_batch = pytest.mark.parametrize("labels", [torch.tensor(v) for v in LABELS.values()], ids=list(LABELS))


def similarity(x):
    """Cosines (N, N) of the centred rows of x."""
    directions = _directions(x)
    return directions @ directions.T


def number(x):
    return x.item() if isinstance(x, torch.Tensor) else x


def looped_cosine(a, b):
    """Cosine of two centred rows, number by number; 0 where one is constant."""
    a, b = ([x - sum(row) / len(row) for x in row] for row in (a, b))
    products = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = [sum(x * x for x in row) for row in (a, b)]
    return products / (lengths[0] * lengths[1]) ** 0.5 if min(map(number, lengths)) > 1e-24 else 0 * products


def looped_matching(features, labels, classes):
    if features.shape[1] > 3 and features.shape[2] * features.shape[3] > 1:
        rows = []
        for image in features:
            row = []
            for channel in image:
                pixels = list(channel.flatten())
                mean = sum(pixels) / len(pixels)
                row.append((sum((p - mean) ** 2 for p in pixels) / (len(pixels) - 1)) ** 0.5)
            rows.append(row)
    else:
        rows = [list(image.flatten()) for image in features]
    total, n = 0, len(rows)
    for i in range(n):
        for j in range(n):
            hot = [[1.0 if c == labels[k] else 0.0 for c in range(classes)] for k in (i, j)]
            total = total + (looped_cosine(rows[i], rows[j]) - looped_cosine(*hot)) ** 2
    return total / n**2


def looped_contrast(embeddings, labels, temperature):
    z = [row / sum(x * x for x in row) ** 0.5 for row in embeddings]
    losses = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if not positives:
            continue
        everything = sum(torch.exp(z[i] @ z[a] / temperature) for a in range(len(z)) if a != i)
        losses.append(-sum(z[i] @ z[p] / temperature - torch.log(everything) for p in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0 * embeddings.sum()


def value_and_gradient(loss, x):
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value, [x])[0]


def assert_same(loss, reference, x, tolerance=1e-11):
    for mine, slow in zip(value_and_gradient(loss, x), value_and_gradient(reference, x), strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, slow, rtol=tolerance, atol=tolerance)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_batch
@pytest.mark.parametrize(
    "shape", [(6, 3, 2), (4, 3, 2), (3, 2, 2), (6, 1, 1)], ids=["deviations", "fewest", "few_channels", "one_pixel"]
)
def test_similarity_loss_equals_the_loop(labels, shape):
    features = normal(len(labels), *shape)
    assert_same(lambda x: similarity_loss(x, labels, CLASSES), lambda x: looped_matching(x, labels, CLASSES), features)


def test_similarity_loss_of_a_single_class_of_labels():
    labels = torch.zeros(4, dtype=torch.int64)
    assert_same(lambda x: similarity_loss(x, labels, 1), lambda x: looped_matching(x, labels, 1), normal(4, 5, 2, 2))


@every_batch
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supervised_contrast_equals_the_loop(labels, temperature):
    embeddings = normal(len(labels), 7)
    assert_same(
        lambda x: contrast_loss(x, labels, temperature),
        lambda x: looped_contrast(x, labels, temperature),
        embeddings,
        1e-10,
    )


@pytest.mark.parametrize("labels", ["all_different", "one_image"])
def test_contrast_without_any_anchor_is_nothing(labels):
    batch = torch.tensor(LABELS[labels])
    value, gradient = value_and_gradient(lambda x: contrast_loss(x, batch), normal(len(batch), 7))
    assert value == 0
    assert gradient.eq(0).all()


def test_gradients_agree_with_finite_differences():
    labels = torch.tensor(LABELS["one_member"])
    rows, maps = normal(8, 4).requires_grad_(), normal(8, 5, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contrast_loss(x, labels), rows)
    assert torch.autograd.gradcheck(lambda x: similarity_loss(x, labels, CLASSES), maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_rows_have_no_direction_and_no_gradient(dtype, constant):
    """Also where the mean of equal numbers is not that number, to the last digit."""
    x = normal(5, 7).to(dtype)
    x[1] = constant
    x[3] = -constant
    matrix = similarity(x)
    assert matrix[1].eq(0).all()
    assert matrix[:, 3].eq(0).all()
    assert torch.allclose(matrix.diag()[[0, 2, 4]], torch.ones(3, dtype=dtype))
    _, gradient = value_and_gradient(lambda z: (similarity(z) - 0.3).square().mean(), x)
    assert torch.isfinite(gradient).all()
    assert gradient[[1, 3]].eq(0).all()
    assert gradient[[0, 2, 4]].ne(0).any()


@pytest.mark.parametrize(
    "labels", [v for v in LABELS.values() if len(v) != 1], ids=[k for k in LABELS if k[4:] != "image"]
)
def test_dead_features_are_defined(labels):
    """All maps constant, as behind dead units: the similarity is 0, and nothing becomes NaN."""
    labels = torch.tensor(labels)
    value, gradient = value_and_gradient(
        lambda x: similarity_loss(x, labels, CLASSES), torch.ones(len(labels), 6, 2, 2)
    )
    assert torch.isfinite(value)
    assert gradient.eq(0).all()
    value, gradient = value_and_gradient(lambda x: contrast_loss(x, labels), torch.zeros(len(labels), 6))
    assert torch.isfinite(value)
    assert gradient.eq(0).all()


def test_unit_rows():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


def test_images_are_unnormalised_and_reconstructed():
    normalisation = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    pixels = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0.0, 1.0
    mean, deviation = (torch.tensor(v)[:, None, None] for v in normalisation)
    images = (pixels - mean) / deviation
    restored = unnormalised(images, normalisation)
    outside = unnormalised(torch.tensor([-9.0, 9.0])[:, None, None, None].repeat(1, 3, 1, 1), normalisation)
    assert outside.flatten(1).tolist() == [[0.0] * 3, [1.0] * 3]
    torch.testing.assert_close(restored, pixels)
    assert restored.min() >= 0
    assert restored.max() <= 1
    painted = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    expected = F.binary_cross_entropy(painted.sigmoid(), pixels)
    assert reconstruction(painted, images, normalisation).item() == pytest.approx(expected.item(), rel=1e-5)
    assert reconstruction(0 * painted, images, normalisation).item() == pytest.approx(math.log(2))
