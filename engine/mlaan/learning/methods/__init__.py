"""Methods: each a config that returns its list of local losses."""

from mlaan.learning.methods.auglocal import AugLocal
from mlaan.learning.methods.backlink import BackLink
from mlaan.learning.methods.dgl import DGL
from mlaan.learning.methods.end_to_end import EndToEnd
from mlaan.learning.methods.hpff import HPFF
from mlaan.learning.methods.infopro import InfoPro
from mlaan.learning.methods.man import MAN
from mlaan.learning.methods.mlaan import MLAAN
from mlaan.learning.methods.predsim import PredSim

__all__ = ["DGL", "HPFF", "MAN", "MLAAN", "AugLocal", "BackLink", "EndToEnd", "InfoPro", "PredSim"]
