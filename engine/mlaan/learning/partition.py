"""Where the backbone is cut into local modules."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mlaan.errors import UserError
from mlaan.learning.published import PUBLISHED_ENDS
from mlaan.models import Backbone
from mlaan.models.measure import measure


@dataclass(frozen=True)
class Partition:
    """K local modules, each a run of consecutive blocks; the stem belongs to module 0.

    Attributes:
        starts: first block of every module; starts[0] is 0.
        num_blocks: blocks of the backbone.

    Raises:
        UserError: the starts are not rising from 0 below `num_blocks`.
    """

    starts: tuple[int, ...]
    num_blocks: int

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if not self.starts or self.starts[0] != 0 or not rising or self.starts[-1] >= self.num_blocks:
            raise UserError(
                f"partition.cuts = {list(self.starts)} must rise from 0 to at most {self.num_blocks - 1}, "
                "the first block of every module"
            )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Blocks [a, b) of every module."""
        return tuple(zip(self.starts, (*self.starts[1:], self.num_blocks), strict=True))

    def outputs(self, block_shapes: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Output shape of every module, (C, H, W) or (T, C) for tokens, out of that of every block.

        Raises:
            UserError: an output is neither, so that local heads do not fit it.
        """
        shapes = [block_shapes[end - 1] for _, end in self.spans]
        for module, shape in enumerate(shapes):
            if len(shape) not in (2, 3):
                raise UserError(
                    f"the output of module {module} has shape {tuple(shape)}, but local heads need (C, H, W) or "
                    "tokens (T, C): method 'end_to_end' takes any shape"
                )
        return shapes

    def modules(self, backbone: Backbone) -> list[nn.Sequential]:
        """The local modules as views on the backbone's own stem and blocks."""
        parts: list[list[nn.Module]] = [[block.module for block in backbone.blocks[a:b]] for a, b in self.spans]
        parts[0].insert(0, backbone.stem)
        return [nn.Sequential(*part) for part in parts]


def cut(
    backbone: Backbone, modules: int, cuts: str | Sequence[int] = "even", image_shape: Sequence[int] = (3, 32, 32)
) -> Partition:
    """Cut `backbone` into `modules` local modules.

    Args:
        cuts: "even" block counts; "flops" or "bytes": the largest module's forward FLOPs or saved bytes are as small
            as contiguous modules allow; "published": the cut of the MLAAN paper's networks; or the first block of
            every module.
        image_shape: (C, H, W), for the balanced cuts.

    Raises:
        UserError: more modules than blocks, an unknown rule, or no published cut of that size.
    """
    n = len(backbone.blocks)
    if not 1 <= modules <= n:
        raise UserError(
            f"partition.modules = {modules} does not fit {backbone.name}: it has {n} blocks, choose 1 to {n}"
        )
    if not isinstance(cuts, str):
        partition = Partition(tuple(cuts), n)
        if len(cuts) != modules:
            raise UserError(
                f"partition.cuts = {list(cuts)} starts {len(cuts)} modules, but partition.modules = {modules}: "
                f"set partition.modules = {len(cuts)}"
            )
        return partition
    if cuts == "even":
        return Partition(tuple(i * n // modules for i in range(modules)), n)
    if cuts == "published":
        return _published(backbone, modules)
    if cuts in ("flops", "bytes"):
        return Partition(balance(_block_costs(backbone, image_shape, cuts), modules), n)
    raise UserError(f"partition.cuts = {cuts!r} is not even, flops, bytes, published or a list of first blocks")


def _published(backbone: Backbone, modules: int) -> Partition:
    ends = PUBLISHED_ENDS.get((backbone.name, modules), "")
    position = {block.label: i for i, block in enumerate(backbone.blocks)}
    if ends == "every block" and len(position) == modules:
        return Partition(tuple(range(modules)), modules)
    if not ends or not position.keys() >= set(ends.split()):
        known = sorted(k for name, k in PUBLISHED_ENDS if name == backbone.name)
        fix = "it has none: use even, flops or bytes"
        if known:
            fix = f"it has one for {known} modules (where every block is a module the papers count the stem as one "
            fix += "more: their 16, 34, 51, 55 less one)"
        raise UserError(f"partition.cuts = 'published' gives no cut of {backbone.name} in {modules} modules: {fix}")
    return Partition((0, *(position[end] + 1 for end in ends.split()[:-1])), len(backbone.blocks))


def _block_costs(backbone: Backbone, image_shape: Sequence[int], what: str) -> list[int]:
    shape: Sequence[int] = (2, *image_shape)
    backbone.block_shapes(image_shape)  # says clearly when the images do not fit
    costs = []
    for i, part in enumerate([backbone.stem, *(block.module for block in backbone.blocks)]):
        cost = measure(part, shape)
        value = cost.forward_flops if what == "flops" else cost.saved_bytes + cost.output_bytes
        if i <= 1:
            costs = [value + sum(costs)]
        else:
            costs.append(value)
        shape = cost.output_shape
    return costs


def balance(costs: Sequence[int], modules: int) -> tuple[int, ...]:
    """First blocks of the contiguous groups whose largest sum is smallest; among those, the most even."""
    n = len(costs)
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    # best[b] = (largest sum, sum of squares, starts) of the first b blocks in the groups made so far
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for k in range(1, modules + 1):
        step: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for b in range(k, n - (modules - k) + 1):
            step[b] = min(
                (max(top, total[b] - total[a]), squares + (total[b] - total[a]) ** 2, (*starts, a))
                for a, (top, squares, starts) in best.items()
                if a < b
            )
        best = step
    return best[n][2]
