"""Finding the blocks of a net that does not list them: its forward is traced and cut where one tensor alone goes on."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlaan.errors import UserError
from mlaan.models.backbone import Backbone

_PLAIN = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Conv2d, nn.Linear)


def list_blocks(net: nn.Module) -> Backbone:
    """A view on any net whose blocks stand in lists (`layer1`, `blocks`, `stages[i].blocks`) and run one by one.

    The net's forward is traced without arithmetic. Every listed block is taken whose output is all that the rest of
    the net reads; what runs between two of them belongs to the later one. So the view computes what the net does, in
    training and evaluation. All blocks are in one stage.

    Raises:
        UserError: forward cannot be traced, differs between training and evaluation, or has fewer than two such blocks.
    """
    candidates = {id(block) for block in _candidates(net, inside=False)}
    graph = _trace(net, candidates)
    path = _Path(graph)
    calls = [node for node in path.cuts if node.op == "call_module"]
    ends = [node for node in calls if id(net.get_submodule(str(node.target))) in candidates]
    if len(ends) < 2:
        raise UserError("no two blocks follow each other in lists, each reading the one before alone")
    begin = path.cuts[path.cuts.index(ends[0]) - 1]
    bounds = [begin, *ends]
    blocks = [_part(net, graph, start, end) for start, end in zip(bounds, ends, strict=False)]
    return Backbone(net, _part(net, graph, path.cuts[0], begin), blocks, _part(net, graph, ends[-1], path.cuts[-1]))


def _candidates(parent: nn.Module, *, inside: bool) -> Iterator[nn.Module]:
    """What stands in lists and is no single layer; of a stage, what stands in its own `blocks` or `layers`."""
    for child in parent.children():
        lists = [getattr(child, name, None) for name in ("blocks", "layers")]
        lists = [part for part in lists if isinstance(part, nn.Sequential | nn.ModuleList)]
        if isinstance(child, nn.Sequential | nn.ModuleList) or (not lists and "Stage" in type(child).__name__):
            lists = [child]
        found = [block for part in lists for block in _candidates(part, inside=True)]
        is_layer = isinstance(child, _PLAIN) or not any(True for _ in child.children())
        if found:
            yield from found
        elif inside and not is_layer and child not in lists:
            yield child


class _Tracer(fx.Tracer):
    """Looks into those modules only that contain blocks."""

    def __init__(self, blocks: set[int]) -> None:
        super().__init__()
        self.blocks = blocks

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.blocks or not any(id(inner) in self.blocks for inner in m.modules())


def _trace(net: nn.Module, blocks: set[int]) -> fx.Graph:
    """The graph of `net`'s forward, the same in training and in evaluation."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
    modes = {module: module.training for module in net.modules()}
    graphs = []
    try:
        for training in (True, False):
            net.train(training)
            graphs.append(_Tracer(blocks).trace(net, concrete_args=defaults))
    except Exception as error:  # whatever forward does with a tensor that has no values yet
        raise UserError(f"its forward cannot be traced, {type(error).__name__}: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if _described(graphs[0]) != _described(graphs[1]):
        raise UserError("outside its blocks, its forward does something else in training than in evaluation")
    return graphs[0]


def _described(graph: fx.Graph) -> list[tuple[str, ...]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


class _Path:
    """The way from a graph's input to its output.

    Attributes:
        cuts: the input, then every node that all ways pass through, in order; last, what is returned.
    """

    def __init__(self, graph: fx.Graph) -> None:
        nodes = list(graph.nodes)
        images, result = nodes[0], nodes[-1].args[0]
        if not isinstance(result, fx.Node):
            raise UserError("its forward returns more than logits")
        used, reached = {result}, {images}
        for node in reversed(nodes):
            if node in used:
                used.update(node.all_input_nodes)
        for node in nodes:
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        way = [node for node in nodes if node in used and node in reached]
        place = {node: i for i, node in enumerate(way)}
        self.cuts: list[fx.Node] = []
        furthest = 0
        for i, node in enumerate(way):
            if furthest <= i:
                self.cuts.append(node)
            furthest = max([furthest, *(place[user] for user in node.users if user in place)])
        if not self.cuts or self.cuts[-1] is not result:
            raise UserError("its logits do not depend on the images alone")


def _part(net: nn.Module, graph: fx.Graph, start: fx.Node, end: fx.Node) -> nn.Module:
    """What leads from one cut to a later one: the net's own module where that is all, else a view on its parts."""
    if start is end:
        return nn.Sequential()
    if end.op == "call_module" and end.args == (start,) and not end.kwargs:
        return net.get_submodule(str(end.target))
    needed, open_ends = set[fx.Node](), [end]
    while open_ends:
        node = open_ends.pop()
        if node is not start and node not in needed:
            if node.op == "placeholder":
                raise UserError(f"its forward needs more than images: {node.target}")
            needed.add(node)
            open_ends += node.all_input_nodes
    part = fx.Graph()
    copies = {start: part.placeholder("h")}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    module = fx.GraphModule(net, part, "Part")
    for node in part.nodes:
        if node.op == "get_attr":
            _share(net, module, str(node.target))
    return module


def _share(net: nn.Module, part: nn.Module, target: str) -> None:
    """Have `part` read a buffer from the module that owns it: `net.to(device)` puts a new tensor there."""
    owner, _, name = target.rpartition(".")
    source = net.get_submodule(owner)
    if name not in source._buffers:
        return
    if not owner or any(True for _ in source.parameters()):
        raise UserError(f"its forward reads the buffer {target!r} itself: let a module without weights own it")
    part.set_submodule(owner, source)


def channels_first(view: Backbone, shapes: Sequence[Sequence[int]], image_shape: Sequence[int]) -> Backbone:
    """`view` with its blocks' outputs as (N, C, H, W), where they are (N, H, W, C) by their sides' proportions."""
    if not all(_is_channels_last(shape, image_shape) for shape in shapes):
        return view

    def turned(*parts: Any) -> nn.Sequential:
        return nn.Sequential(*parts)

    blocks = [turned(ChannelsLast(), block.module, ChannelsFirst()) for block in view.blocks]
    return Backbone(
        view.net, turned(view.stem, ChannelsFirst()), blocks, turned(ChannelsLast(), view.classifier), name=view.name
    )


def _is_channels_last(shape: Sequence[int], image_shape: Sequence[int]) -> bool:
    if len(shape) != 3:
        return False
    _, height, width = image_shape
    a, b, c = shape
    return a * width == b * height and b * width != c * height


class ChannelsFirst(nn.Module):
    """(N, H, W, C) -> (N, C, H, W)."""

    def forward(self, h):
        return h.permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C)."""

    def forward(self, h):
        return h.permute(0, 2, 3, 1)
