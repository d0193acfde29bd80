"""The linear probe: what it can tell, what it cannot, and the judgement of another solver."""

import warnings

import pytest
import torch

from mlaan.probe import fit


def clusters(samples: int, channels: int, classes: int, distance: float, seed: int = 0):
    """Features (N, C) float32 of unequal scales around one centre per class, and labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = distance * torch.eye(channels)[:classes]
    features = centres[labels] + torch.randn(samples, channels, generator=random)
    return features * torch.logspace(-3, 3, channels) + 7, labels


def test_separable_features_are_told_apart():
    features, labels = clusters(300, 6, 3, distance=30)
    assert fit(features, labels, 3).top1(features, labels) == 1.0
    unseen, their_labels = clusters(300, 6, 3, distance=30, seed=1)
    assert fit(features, labels, 3).top1(unseen, their_labels) == 1.0


def test_shuffled_labels_give_chance():
    features, labels = clusters(4000, 6, 4, distance=30)
    shuffled = labels[torch.randperm(4000, generator=torch.Generator().manual_seed(1))]
    probe = fit(features[:2000], shuffled[:2000], 4)
    # four deviations of a fair draw
    assert probe.top1(features[2000:], shuffled[2000:]) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


def test_an_image_gets_one_answer_whatever_comes_with_it():
    features, labels = clusters(240, 8, 5, distance=2)
    probe = fit(features, labels, 5)
    others = features[:7] + features.std(0)  # of another mean than those of the fit
    one_by_one = torch.cat([probe.logits(row[None]) for row in others])
    torch.testing.assert_close(probe.logits(others), one_by_one)


@pytest.mark.parametrize("l2", [1e-4, 1e-2])
def test_scikit_learn_finds_the_same_weights(l2):
    from sklearn.linear_model import LogisticRegression

    features, labels = clusters(240, 8, 5, distance=2)
    probe = fit(features, labels, 5, l2)
    x = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0)
    judge = LogisticRegression(C=1 / (l2 * 240), tol=1e-10, max_iter=10_000).fit(x.numpy(), labels.numpy())
    torch.testing.assert_close(probe.weight, torch.from_numpy(judge.coef_.T.copy()), rtol=1e-2, atol=2e-3)
    # the intercept is free up to a constant
    bias = torch.from_numpy(judge.intercept_)
    torch.testing.assert_close(probe.bias - probe.bias.mean(), bias - bias.mean(), rtol=1e-2, atol=2e-3)
    assert probe.top1(features, labels) == judge.score(x.numpy(), labels.numpy())
    torch.testing.assert_close(
        probe.logits(features).softmax(1), torch.from_numpy(judge.predict_proba(x.numpy())), rtol=0, atol=1e-3
    )


def test_the_result_is_the_same_bits_and_the_generator_stays():
    features, labels = clusters(100, 5, 3, distance=1)
    before = torch.get_rng_state()
    first, second = (fit(features, labels, 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_feature_that_never_varies_and_a_missing_class_do_no_harm():
    features, labels = clusters(200, 5, 3, distance=30)
    features[:, 2] = 0.1
    features[:, 4] = 1e30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = fit(features, labels, 6)
    assert probe.weight.isfinite().all()
    assert (probe.weight[[2, 4]] == 0).all()
    assert probe.top1(features, labels) == 1.0


def test_it_works_where_gradients_are_off():
    features, labels = clusters(60, 4, 2, distance=30)
    with torch.no_grad():
        assert fit(features, labels, 2).top1(features, labels) == 1.0


def test_a_minimum_that_was_not_reached_is_said(monkeypatch):
    monkeypatch.setattr("mlaan.probe.linear._ITERATIONS", 3)
    features, labels = clusters(200, 8, 5, distance=1)
    with pytest.warns(RuntimeWarning, match="ended with a gradient of"):
        fit(features, labels, 5)
