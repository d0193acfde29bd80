"""BackLink: local losses of a limited reach over any base."""

import pytest

from learning.tiny import listed, make, make_vit, ratios
from mlaan import UserError
from mlaan.learning import PoolLinear
from mlaan.learning.heads import DGLHead
from mlaan.learning.leap import LeapNetwork
from mlaan.learning.methods import BackLink
from mlaan.learning.methods.infopro import InfoProHead
from mlaan.learning.methods.predsim import PredSimHead


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_every_loss_has_the_reach(reach):
    losses = make(BackLink(reach=reach)).supervision.losses
    assert listed(losses) == [("0.local", reach, 1.0), ("1.local", reach, 1.0), ("2.classifier", reach, 1.0)]


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("light", PoolLinear), ("dgl", DGLHead), ("predsim", PredSimHead), ("infopro", InfoProHead),
        ("auglocal", LeapNetwork),
    ],
)  # fmt: skip
def test_it_stands_on_any_base(base, head):
    engine = make(BackLink(base=base))
    assert all(isinstance(loss.head, head) for loss in engine.supervision.losses[:-1])
    assert (ratios(engine) < 0.95).all()


def test_tokens():
    assert (ratios(make_vit(BackLink(base="light"))) < 0.95).all()


def test_wrong_reach():
    with pytest.raises(UserError, match=r"method.reach = 0 must be at least 1"):
        BackLink(reach=0)
