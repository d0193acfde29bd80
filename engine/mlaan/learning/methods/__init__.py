"""Methods: each a config that returns its list of local losses."""

from mlaan.learning.methods.dgl import DGL
from mlaan.learning.methods.end_to_end import EndToEnd
from mlaan.learning.methods.mlaan import MLAAN

__all__ = ["DGL", "MLAAN", "EndToEnd"]
