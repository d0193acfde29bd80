"""The learning rate of each epoch."""

import math

import pytest

from mlaan.config import SGDConfig
from mlaan.optim.schedule import learning_rate


def test_cosine_starts_at_the_rate_halves_in_the_middle_and_ends_near_zero():
    optim = SGDConfig(learning_rate=0.8)
    rates = [learning_rate(optim, epoch, 400) for epoch in range(400)]
    assert rates[0] == 0.8
    assert rates[200] == pytest.approx(0.4)
    assert rates[399] == pytest.approx(0.4 * (1 + math.cos(math.pi * 399 / 400)))
    assert rates == sorted(rates, reverse=True)


def test_constant():
    assert {learning_rate(SGDConfig(0.3, schedule="constant"), epoch, 5) for epoch in range(5)} == {0.3}


def test_warm_up_is_the_published_line_on_top_of_the_cosine():
    optim, plain = SGDConfig(0.8, warmup_epochs=10), SGDConfig(0.8)
    for epoch in range(12):
        e = epoch + 1  # the recipe counts from 1
        factor = (e - 1) / 10 + 0.01 * (11 - e) / 10 if e <= 10 else 1.0
        assert learning_rate(optim, epoch, 400) == pytest.approx(factor * learning_rate(plain, epoch, 400))


@pytest.mark.parametrize(("rate", "epochs"), [(0.8, 400), (0.1, 160)])
def test_recipe_is_the_formula_of_the_published_codes(rate, epochs):
    optim = SGDConfig(rate, schedule="recipe", warmup_epochs=10)
    for epoch in range(epochs):
        e = epoch + 1
        expected = 0.5 * rate * (1 + math.cos(math.pi * e / epochs))
        if e <= 10:
            expected = expected * (e - 1) / 10 + 0.01 * (11 - e) / 10
        assert learning_rate(optim, epoch, epochs) == pytest.approx(expected, abs=1e-15)
    assert learning_rate(optim, epochs - 1, epochs) == 0
