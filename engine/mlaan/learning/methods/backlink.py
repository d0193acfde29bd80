"""BackLink (Guo, Fouda, Eltawil, Salama, IEEE TAI 2023, arXiv 2205.07141): local losses that reach a little further."""

from dataclasses import dataclass

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.base import BaseName, base_named, local_losses
from mlaan.learning.site import Site
from mlaan.learning.supervision import Supervision


@dataclass(frozen=True)
class BackLink(MethodConfig, name="backlink"):
    """BackLink: every module has a local loss whose error flows back through the modules before it, a limited way.

    min over theta_{i-r+1} ... theta_i, c_i of CE(c_i(f_i(... f_{i-r+1}(sg h_{i-r}))), y) for every module i: reach r.

    The paper limits the way back in layers, here it is in modules. No code of the authors was found; that the head
    c_i is DGL's is our choice.
    """

    reach: int = setting(2, "modules that a loss reaches back through, its own included; more than there are: all")
    base: BaseName = setting("dgl", "auxiliary classifier and loss: light (pool + linear), or those of a method")

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise UserError(f"method.reach = {self.reach} must be at least 1: 1 is the module itself, 2 one link back")

    def supervise(self, site: Site) -> Supervision:
        """A loss per module, on the backbone's own classifier at the last."""
        return Supervision(local_losses(site, base_named(self.base), self.reach))
