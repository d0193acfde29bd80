"""Linear CKA against its definition by Gram matrices, and what must not move it."""

import math

import pytest
import torch

from mlaan.probe import cka_matrix, linear_cka


def features(samples: int, channels: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(samples, channels, generator=random, dtype=torch.float64) + 3


def by_grams(x: torch.Tensor, y: torch.Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) · HSIC(L, L)), with HSIC = tr(K H L H) / (N - 1)², term by term."""
    n = len(x)
    centring = torch.eye(n, dtype=x.dtype) - 1 / n

    def hsic(k: torch.Tensor, other: torch.Tensor) -> float:
        return ((k @ centring @ other @ centring).trace() / (n - 1) ** 2).item()

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other))


@pytest.mark.parametrize("shape", [(40, 3, 5), (12, 7, 4), (6, 20, 30)], ids=["N40-C3-D5", "N12-C7-D4", "N6-C20-D30"])
def test_the_definition(shape):
    n, c, d = shape
    x, y = features(n, c, 0), features(n, d, 1)
    y[:, 0] += 2 * x[:, 0]
    assert linear_cka(x, y) == pytest.approx(by_grams(x, y), rel=1e-10)
    assert 0 < linear_cka(x, y) < 1


def test_one_against_itself_and_under_rotation_shift_and_scale():
    x = features(50, 6, 0)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    y = features(50, 4, 1)
    y[:, 0] += x[:, 1]
    moved = 1e-9 * x @ rotation - 5
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, moved) == pytest.approx(1)
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y))


def test_stretching_one_direction_does_move_it():
    x = features(50, 6, 0)
    stretch = torch.ones(6, dtype=torch.float64)
    stretch[0] = 10
    assert linear_cka(x, x * stretch) < 0.7


def test_unrelated_features_have_the_stated_bias():
    x, y = features(2000, 20, 0), features(2000, 30, 1)
    assert linear_cka(x, y) == pytest.approx(math.sqrt(20 * 30) / 2000, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_never_vary_are_like_nothing(dtype):
    x = features(33, 3, 0).to(dtype)
    still = torch.linspace(0.1, 0.9, 8, dtype=dtype).expand(33, 8)  # their means are off by a rounding
    assert math.isnan(linear_cka(x, still))
    with_dead = torch.cat([x, still], 1)
    assert linear_cka(x, with_dead) == pytest.approx(1)


def test_the_matrix_has_rows_of_the_first_and_columns_of_the_second():
    xs, ys = [features(30, c, c) for c in (2, 3)], [features(30, c, c) for c in (3, 4, 5)]
    matrix = cka_matrix(xs, ys)
    assert [len(row) for row in matrix] == [3, 3]
    assert matrix[1][0] == pytest.approx(1)
    assert matrix[0][2] == linear_cka(xs[0], ys[2])


def test_other_images_cannot_be_compared():
    with pytest.raises(ValueError, match="30 and 31 images"):
        linear_cka(features(30, 2, 0), features(31, 2, 0))
