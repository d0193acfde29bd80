"""What a trained backbone knows after each local module: linear probes, and the likeness of modules (CKA)."""

from mlaan.probe.cka import cka_matrix, linear_cka
from mlaan.probe.features import Features, pooled_features
from mlaan.probe.linear import LinearProbe, fit
from mlaan.probe.result import Likeness, ModuleProbe, Probe, as_text

__all__ = [
    "Features",
    "Likeness",
    "LinearProbe",
    "ModuleProbe",
    "Probe",
    "as_text",
    "cka_matrix",
    "fit",
    "linear_cka",
    "pooled_features",
]
