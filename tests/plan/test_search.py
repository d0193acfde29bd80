"""The search for settings that fit, and for the nearest change that does."""

import itertools
import re
import shlex
from dataclasses import replace
from unittest import mock

import pytest

from mlaan.build import bench_for, choice_of, outline, with_choice
from mlaan.cli.settings import load_config
from mlaan.config import bytes_of
from mlaan.errors import UserError
from mlaan.plan.candidates import BALANCED, Choice, Estimate
from mlaan.plan.change import nearest_change, words
from mlaan.plan.machine import MACHINES
from mlaan.plan.rivals import rivals
from mlaan.plan.search import RECOMPUTE, Space, _least, _rounded_up, largest_batch, module_counts, next_batch, search

H100, CPU = MACHINES["h100"], MACHINES["cpu"]


def config(**changes):
    settings = {"data.name": "synthetic", "data.size": "32", "method.preset": "light", "train.kernels": "reference"}
    return load_config(None, [*(settings | {k.replace("__", "."): v for k, v in changes.items()}).items()])


def bench(machine=CPU, **changes):
    return bench_for(config(**changes), machine)


@pytest.fixture(scope="module")
def light():
    return bench()


NOW = Choice(4, "even", "lean", 0, "none", 64)
SPACE = Space(module_counts(9))


@pytest.mark.parametrize(
    ("preset", "kernels", "optim"),
    [("light", "reference", "adamw"), ("paper", "reference", "sgd"), ("light", "triton", "sgd")],
)
def test_an_estimate_is_what_the_report_says(preset, kernels, optim):
    average = "0.9" if optim == "adamw" else "0"
    settings = config(method__preset=preset, train__kernels=kernels, optim__name=optim, train__average=average)
    machine = H100 if kernels == "triton" else CPU
    known = bench_for(settings, machine)
    for choice in (replace(NOW, recompute="once"), Choice(6, (0, 1, 2, 4, 6, 8), "windowed", 3, "each", 16)):
        figures = outline(with_choice(settings, choice)).describe(choice.batch, machine)["plans"]["this plan"]
        one = known.estimate(choice, exact=True)
        assert one.choice == choice
        assert one.peak_bytes == figures["peak_bytes"]
        assert one.seconds == pytest.approx(figures["seconds"], rel=1e-9)
        if kernels == "reference":
            assert known.estimate(choice).peak_bytes == pytest.approx(one.peak_bytes, rel=0.02)


def test_settings_of_a_choice_are_found_again():
    choice = Choice(3, (0, 2, 7), "windowed", 2, "each", 24)
    assert choice_of(with_choice(config(), choice)) == choice


def test_balanced_cuts_are_written_out(light):
    one = light.estimate(replace(NOW, cuts=BALANCED), exact=True)
    assert isinstance(one.choice.cuts, tuple)
    assert light.estimate(one.choice, exact=True).peak_bytes == one.peak_bytes


def test_rebuilding_costs_time_where_pytorch_does_it(light):
    assert light.estimate(replace(NOW, recompute="fused")).seconds > light.estimate(NOW).seconds


def everything(known, batch, *, exact):
    cuts = ("even", BALANCED)
    for k, rule, policy in itertools.product(module_counts(9), cuts, ("none", "once", "each")):
        yield known.estimate(Choice(k, rule, "lean", 0, policy, batch), exact=exact)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_nothing_that_fits_is_faster_than_what_is_found(light, share):
    tried = list(everything(light, 64, exact=True))
    low, high = min(one.peak_bytes for one in tried), max(one.peak_bytes for one in tried)
    budget = int(low + share * (high - low))
    found = search(light, SPACE, budget)
    best = max(one.images_per_second for one in tried if one.peak_bytes <= budget)
    assert found[0].images_per_second >= 0.99 * best
    assert all(one.peak_bytes <= budget and one.choice.batch == 64 for one in found)
    assert found[0].peak_bytes == light.estimate(found[0].choice, exact=True).peak_bytes


def test_plans_found_are_unlike_each_other(light):
    found = search(light, SPACE, 2**30)
    assert len(found) >= 3
    for one, other in itertools.combinations(found, 2):
        a, b = one.choice, other.choice
        near = abs(one.peak_bytes - other.peak_bytes) < 0.1 * other.peak_bytes
        assert not near or (a.modules, a.recompute) != (b.modules, b.recompute)


def test_what_is_given_stays(light):
    space = Space([5], [(0, 1, 3, 4, 6)], [("full", 0)], ["once"], 32, batch_fixed=True)
    (one,) = search(light, space, 2**30)
    assert one.choice == Choice(5, (0, 1, 3, 4, 6), "full", 0, "once", 32)


@pytest.mark.parametrize("choice", [NOW, replace(NOW, recompute="once"), replace(NOW, modules=9, batch=75)])
def test_the_largest_batch_is_the_last_that_fits(light, choice):
    peaks = {n: light.estimate(replace(choice, batch=n)).peak_bytes for n in (*range(2, 8), *range(8, 75, 8))}
    for budget in (peaks[2] - 1, peaks[3], peaks[8], peaks[40] - 1, peaks[56] + 1000):
        expected = max((n for n in peaks if peaks[n] <= budget and n < choice.batch), default=0)
        assert largest_batch(light, choice, budget) == expected
    assert largest_batch(light, choice, 2**40) == choice.batch


@pytest.mark.parametrize("full", [300, 64, 9, 8, 5])
def test_the_largest_batch_is_found_on_any_curve_that_bends_up(full):
    known = mock.Mock()
    known.estimate = lambda choice: Estimate(choice, max(100 + choice.batch, choice.batch**2), 1.0, 1)
    for budget in (99, 101, 104, 107, 108, 130, 255, 256, 257, 1000, 40_000, 89_999, 90_000):
        fit = [n for n in range(2, full + 1) if max(100 + n, n * n) <= budget and (n < 8 or n % 8 == 0 or n == full)]
        assert largest_batch(known, replace(NOW, batch=full), budget) == max(fit, default=0)


def test_where_not_the_whole_batch_fits_it_is_the_largest_that_does(light):
    space = replace(SPACE, batch=512)
    budget = min(one.peak_bytes for one in everything(light, 512, exact=False)) * 2 // 3
    found = search(light, space, budget)
    batch = found[0].choice.batch
    assert batch % 8 == 0
    assert batch == max(one.choice.batch for one in found)
    for one in everything(light, batch + 8, exact=False):
        assert one.peak_bytes > budget
    with pytest.raises(UserError, match=r"no plan fits into .* set a smaller data.batch"):
        search(light, replace(space, batch_fixed=True), budget)


@pytest.mark.parametrize("fixed", [False, True])
def test_where_nothing_fits_the_amount_that_is_advised_is_enough(light, fixed):
    space = replace(SPACE, batch=8, batch_fixed=fixed)
    with pytest.raises(UserError, match=r"no plan fits into 1.0 MiB: the least found is .* MiB, at data.batch") as told:
        search(light, space, 2**20)
    found = re.search(r"found is ([0-9.]+) MiB, at data.batch = (\d+) ", str(told.value))
    assert found is not None
    allowed = search(light, space, bytes_of(f"{found[1]}MiB", "--memory"))
    assert all(one.choice.batch == 8 if fixed else one.choice.batch >= 2 for one in allowed)
    with pytest.raises(UserError, match="no plan fits"):
        search(light, space, bytes_of(f"{found[1]}MiB", "--memory") - 2**20 // 5)


def test_an_advised_amount_is_rounded_up():
    for size, said in ((5 * 2**20, "5.0 MiB"), (5 * 2**20 + 1, "5.1 MiB"), (2**30 + 1, "1.01 GiB")):
        assert _rounded_up(size) == said
        assert bytes_of(said, "--memory") >= size


def test_of_batches_that_need_as_much_the_largest_is_told():
    """Weights outweigh what a few images take."""
    known = mock.Mock()
    known.estimate = lambda choice, exact=False: Estimate(choice, 100_000 + choice.batch, 1.0, 1)
    few = known.estimate(replace(NOW, batch=2))
    assert _least(known, Space([4], batch=64), [few]).choice.batch == 64
    assert _least(known, Space([4], batch=512), [few]).choice.batch == 96
    assert _least(known, Space([4], batch=512, batch_fixed=True), [few]) == few


def test_one_image_is_never_proposed_unless_it_was_asked_for(light):
    single = replace(NOW, batch=1)
    peak = light.estimate(replace(NOW, batch=2)).peak_bytes
    assert largest_batch(light, NOW, peak - 1) == 0
    assert largest_batch(light, single, peak - 1) == 1
    assert [next_batch(n) for n in (1, 2, 3, 8, 9, 16, 17)] == [0, 0, 2, 7, 8, 8, 16]


def test_modules_that_the_method_refuses_are_left_out():
    authors = bench(method__preset="authors", method__reach="3")
    found = search(authors, Space([2, 3, 4], batch=8), 2**30)
    assert {one.choice.modules for one in found} <= {3, 4}
    with pytest.raises(UserError, match=r"partition.modules = 2 is below method.reach = 3"):
        search(authors, Space([2], batch=8), 2**30)


def test_fused_kernels_rebuild_nothing_where_that_fits():
    known = bench(H100, train__kernels="triton")
    none, fused = (
        known.estimate(Choice(3, "even", "lean", 0, policy, 64), exact=True).peak_bytes for policy in ("none", "fused")
    )
    assert fused < none
    space = Space([3], ["even"], [("lean", 0)])
    assert search(known, space, none)[0].choice.recompute == "none"
    assert search(known, space, none - 1)[0].choice.recompute == "fused"


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_rivals_are_those_of_the_report(kernels):
    settings = config(train__kernels=kernels, memory__recompute="none" if kernels == "reference" else "fused")
    found = {rival.name: rival.estimate for rival in rivals(bench_for(settings, CPU), 64, 2**40)}
    figures = outline(settings).describe(64, CPU)["plans"]
    assert {name for name in figures if "checkpointed" in name} == {name for name in found if "checkpointed" in name}
    for name in figures.keys() & found.keys():
        if kernels == "reference" or name != "end-to-end":  # the report's plain one is PyTorch's
            assert found[name].peak_bytes == figures[name]["peak_bytes"]
            assert found[name].seconds == pytest.approx(figures[name]["seconds"])


def test_rivals_that_do_not_fit_come_with_the_batch_that_does(light):
    whole = rivals(light, 64, 2**40)
    tight = rivals(light, 64, whole[-1].estimate.peak_bytes - 1)
    names = [rival.name for rival in tight]
    assert names[:2] == ["end-to-end", "end-to-end, largest batch"]
    assert all(r.estimate.peak_bytes < whole[-1].estimate.peak_bytes for r in tight if "largest batch" in r.name)


def test_the_nearest_change_is_the_first_that_fits_in_order(light):
    now = replace(NOW, schedule="full", modules=3)
    peak = light.estimate(now, exact=True).peak_bytes

    def change(budget):
        one = nearest_change(light, now, budget)
        assert one is not None
        assert one.peak_bytes <= budget
        return one

    rebuilt = (light.estimate(replace(now, recompute=policy), exact=True) for policy in RECOMPUTE[1:])
    assert change(peak - 1) == next(one for one in rebuilt if one.peak_bytes < peak)
    least = min(light.estimate(replace(now, recompute=p), exact=True).peak_bytes for p in RECOMPUTE)
    lean = [replace(now, schedule="lean", recompute=p) for p in RECOMPUTE]
    least_lean = min(light.estimate(one, exact=True).peak_bytes for one in lean)
    if least_lean < least:
        assert change(least - 1).choice.schedule == "lean"
        assert change(least - 1).choice.modules == 3
    more = change(min(least, least_lean) - 1)
    assert (more.choice.schedule, more.choice.batch) == ("lean", 64)
    assert more.choice.modules > 3
    assert nearest_change(light, now, 2**20) is None


def test_a_smaller_batch_comes_with_whatever_lets_it_be_the_largest(light):
    now = replace(NOW, schedule="full", modules=3)
    budget = light.estimate(replace(now, batch=16), exact=True).peak_bytes + 2**18
    one = nearest_change(light, now, budget)
    assert one is not None
    assert one.peak_bytes <= budget
    assert 16 < one.choice.batch < 64
    for k, policy in itertools.product(module_counts(9, 3), RECOMPUTE):
        more = Choice(k, "even", "lean", 0, policy, next(n for n in range(8, 72, 8) if n > one.choice.batch))
        assert light.estimate(more, exact=True).peak_bytes > budget
    whole = replace(now, recompute="each", schedule="lean", modules=9)  # where nothing but the batch can change
    budget = light.estimate(replace(whole, batch=40), exact=True).peak_bytes
    smaller = nearest_change(light, whole, budget)
    assert smaller is not None
    assert smaller.choice == replace(whole, batch=40)


def test_where_no_near_change_fits_any_plan_does():
    """With fewer modules there are fewer leap networks: what no smaller batch gives."""
    known = bench(method__preset="paper")
    now = Choice(9, "even", "lean", 0, "each", 64)
    budget = known.estimate(replace(now, batch=2), exact=True).peak_bytes * 99 // 100
    assert largest_batch(known, now, budget) == 0
    best = search(known, SPACE, budget)[0]
    assert nearest_change(known, now, budget) == best
    assert best.choice.modules < 9


def test_a_smaller_batch_is_a_multiple_of_eight_and_never_none(light):
    now = Choice(9, "even", "lean", 0, "each", 60)
    peak = light.estimate(now, exact=True).peak_bytes
    one = nearest_change(light, now, peak - 1)
    assert one is not None
    assert one.choice == replace(now, batch=56)
    single = replace(now, batch=1)
    assert nearest_change(light, single, light.estimate(single, exact=True).peak_bytes // 2) is None


def test_words_of_a_change_lead_to_it():
    after = Choice(6, "even", "lean", 0, "once", 64)
    before = Choice(3, (0, 2, 7), "windowed", 2, "none", 64)
    assert shlex.split(words(after, before))[3] == "[0,2,7]"
    said = shlex.split(words(before, after))
    overrides = [(key[2:], value) for key, value in zip(said[::2], said[1::2], strict=True)]
    start = [("partition.modules", "3"), ("partition.cuts", "[0, 2, 7]"), ("memory.schedule", "windowed")]
    start += [("memory.window", "2"), ("data.batch", "64")]
    assert choice_of(load_config(None, [*start, *overrides])) == after


@pytest.mark.parametrize("method", ["end_to_end", "dgl"])
def test_other_methods_find_plans_too(method):
    settings = [("data.name", "synthetic"), ("method.name", method), ("train.kernels", "reference")]
    known = bench_for(load_config(None, settings), CPU)
    everything_fits = search(known, Space(module_counts(9, 1)), 2**31)
    assert (everything_fits[0].choice.modules, everything_fits[0].choice.recompute) == (1, "none")
