"""Cuts: even, balanced, published, given."""

from itertools import combinations

import pytest

from mlaan import UserError
from mlaan.learning import Partition, cut
from mlaan.learning.partition import _block_costs, balance
from mlaan.models import build


@pytest.mark.parametrize("modules", range(1, 10))
def test_even_cuts_differ_by_one_block_at_most(modules):
    sizes = [b - a for a, b in cut(build("resnet20", 10), modules).spans]
    assert len(sizes) == modules
    assert sum(sizes) == 9
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("costs", [[5, 1, 1, 1, 9, 2, 2], [1, 1, 1, 1, 1], [3, 0, 0, 7]])
@pytest.mark.parametrize("modules", [1, 2, 3, 4])
def test_balance_is_the_best_of_all_cuts(costs, modules):
    def largest(starts):
        return max(sum(costs[a:b]) for a, b in zip(starts, [*starts[1:], len(costs)], strict=True))

    every = [(0, *rest) for rest in combinations(range(1, len(costs)), modules - 1)]
    assert largest(balance(costs, modules)) == min(map(largest, every))


@pytest.mark.parametrize("what", ["flops", "bytes"])
def test_balanced_cuts_are_no_worse_than_even_ones(what):
    backbone = build("resnet50", 10)
    costs = _block_costs(backbone, (3, 64, 64), what)

    def largest(partition):
        return max(sum(costs[a:b]) for a, b in partition.spans)

    even, balanced = cut(backbone, 5, "even"), cut(backbone, 5, what, (3, 64, 64))
    assert largest(balanced) < largest(even)


def test_published_cuts():
    backbone = build("resnet32", 10)
    ends = [backbone.blocks[b - 1].label for _, b in cut(backbone, 8, "published").spans]
    assert ends == ["1.0", "1.2", "1.4", "2.1", "2.3", "3.0", "3.2", "3.4"]
    assert len(cut(backbone, 15, "published")) == 15
    assert len(cut(build("resnet110", 10), 32, "published")) == 32
    with pytest.raises(UserError, match=r"gives no cut of resnet32 in 5 modules: it has one for \[2, 4, 8, 15\]"):
        cut(backbone, 5, "published")
    with pytest.raises(UserError, match="it has none"):
        cut(build("resnet20", 10), 5, "published")


def test_given_cuts_and_their_mistakes():
    backbone = build("resnet20", 10)
    assert cut(backbone, 3, [0, 4, 8]).spans == ((0, 4), (4, 8), (8, 9))
    with pytest.raises(UserError, match=r"starts 3 modules, but partition.modules = 4: set partition.modules = 3"):
        cut(backbone, 4, [0, 4, 8])
    for wrong in ([1, 4], [0, 4, 4], [0, 9], [0, 5, 3]):
        with pytest.raises(UserError, match="must rise from 0 to at most 8"):
            cut(backbone, len(wrong), wrong)
    with pytest.raises(UserError, match="must rise from 0 to at most 8"):  # the first thing to mend
        cut(backbone, 4, [1, 2])
    with pytest.raises(UserError, match=r"partition.modules = 10 does not fit resnet20: it has 9 blocks"):
        cut(backbone, 10)
    with pytest.raises(UserError, match=r"partition.cuts = 'odd' is not"):
        cut(backbone, 3, "odd")


def test_modules_are_views_on_the_backbone():
    backbone = build("resnet20", 10)
    modules = Partition((0, 4), 9).modules(backbone)
    assert modules[0][0] is backbone.stem
    assert [m for part in modules for m in part][1:] == [block.module for block in backbone.blocks]
