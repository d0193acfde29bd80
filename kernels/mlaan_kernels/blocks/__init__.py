"""Fused residual blocks: plain blocks' work by the operators of this package, with less kept for the backward."""

from mlaan_kernels.blocks.backward import backward
from mlaan_kernels.blocks.chain import Chain, Saved, Settings
from mlaan_kernels.blocks.convolution import Grads, add_grads
from mlaan_kernels.blocks.cotangent import Cotangent
from mlaan_kernels.blocks.fused import FusedBasicBlock, FusedBlock, FusedBottleneck, FusedSequence, fuse
from mlaan_kernels.blocks.matching import form, make_chain

__all__ = [
    "Chain",
    "Cotangent",
    "FusedBasicBlock",
    "FusedBlock",
    "FusedBottleneck",
    "FusedSequence",
    "Grads",
    "Saved",
    "Settings",
    "add_grads",
    "backward",
    "form",
    "fuse",
    "make_chain",
]
