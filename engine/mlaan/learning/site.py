"""The site of a supervision: everything that a method may look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlaan.learning.partition import Partition
from mlaan.models import Backbone

Normalisation = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, where the largest pixel value counts as 1."""


@dataclass(frozen=True, eq=False)
class Site:
    """A backbone that is cut, and the images it will see.

    Attributes:
        backbone: the network.
        partition: its local modules.
        shapes: output shape of every block without the batch dimension: (C, H, W), or (T, C) for tokens.
        image_shape: (C, H, W) of one image.
        normalisation: what was done to the images, where it is known.
    """

    backbone: Backbone
    partition: Partition
    shapes: Sequence[Sequence[int]]
    image_shape: Sequence[int]
    normalisation: Normalisation | None = None

    @property
    def modules(self) -> int:
        """The number K of local modules."""
        return len(self.partition)

    @property
    def classes(self) -> int:
        """Width of the logits."""
        return self.backbone.num_classes

    @property
    def outputs(self) -> list[Sequence[int]]:
        """Output shape of every local module.

        Raises:
            UserError: an output is neither a map nor tokens, so that local heads do not fit it.
        """
        return self.partition.outputs(self.shapes)
