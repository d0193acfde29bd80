"""The methods' defaults, typed apart: every config row and every run relies on those that it does not name."""

from dataclasses import asdict

from mlaan import DGL, HPFF, MAN, MLAAN, AugLocal, BackLink, InfoPro, PredSim


def test_defaults():
    assert asdict(DGL()) == {"head": "mlp"}
    assert asdict(PredSim()) == {"share": 0.99, "inputs": 4096}
    weights = {"first_reconstruction": 5.0, "last_reconstruction": 0.2, "first_label": 0.05, "last_label": 0.5}
    others = {"loss": "softmax", "features": 128, "temperature": 0.07, "patches": 1}
    assert asdict(InfoPro()) == weights | others
    assert asdict(AugLocal()) == {"depth": 2, "coefficient": 0.5}
    assert asdict(BackLink()) == {"reach": 2, "base": "dgl"}
    assert asdict(MAN()) == {"base": "dgl", "scale": False, "ema": 0.995}
    weights = {"independent_weight": 0.001, "cascaded_weight": 0.999}
    assert asdict(HPFF()) == {"base": "dgl", "patches": 2, "reach": 2} | weights
    choices = {"preset": "paper", "base": "light", "mlm": True, "lam": True, "reach": 2, "ema": 0.995}
    assert asdict(MLAAN()) == choices | weights | dict.fromkeys(("leap", "pooled", "depth", "twins"), "auto")
