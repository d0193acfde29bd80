"""What operators allocate, compute and move, seen on the meta device, where nothing is computed."""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_FREE = (_aten.empty, _aten.new_empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty_strided)
# statistics first, then what is computed with them: both read the maps
_READ_TWICE = (_aten.native_batch_norm, _aten.native_batch_norm_backward, _aten.native_layer_norm_backward)


class Operator(NamedTuple):
    """One operator's floating-point operations (multiply and add are two) and the bytes that it reads and writes."""

    flops: int
    bytes: int


class Meter(TorchDispatchMode):
    """Follows every storage that operators inside make, until it goes.

    Args:
        scratch: the bytes that an operator takes besides its results while it runs: (operator, arguments, result).

    Attributes:
        level: bytes made inside and still alive, above those of the last `start`.
        peak: the most of them since then.
        outer_peak: the same, had the storages named to `start` not gone.
        operators: each since then, less views and those that only allocate.
    """

    def __init__(self, scratch: Callable[[Any, Any, Any], int] | None = None) -> None:
        super().__init__()
        self.scratch = scratch
        self.alive: dict[int, weakref.ref[Any]] = {}
        self.start()

    def start(self, held: Sequence[int] = ()) -> None:
        """Count from here. `held`: keys of storages (`storage_key`) that others may hold on to."""
        self.level = self.peak = self.outer_peak = self.gone = 0
        self.held = set(held)
        self.operators: list[Operator] = []

    @property
    def flops(self) -> int:
        """Of all operators since the start."""
        return sum(operator.flops for operator in self.operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _laid_out(func, args, func(*args, **kwargs))
        given = list(_tensors((args, kwargs)))
        known = {storage_key(tensor) for tensor in given}
        made = [tensor for tensor in _tensors(out) if storage_key(tensor) not in known]
        for tensor in made:
            self._follow(tensor)
        extra = self.scratch(func, args, out) if self.scratch else 0
        self._reach(extra)
        packet = func._overloadpacket
        if packet not in _FREE and (made or func._schema.is_mutable):
            flops = _flops(func, args, kwargs, out)
            if packet is _aten.convolution_backward and all(args[10][:2]):
                made.append(args[0])  # two products, and both read the cotangent
            again = 2 if packet in _READ_TWICE else 1
            self.operators.append(Operator(flops, again * sum(map(_moved, given)) + sum(map(_moved, made))))
        if extra:
            self.operators.append(Operator(0, 2 * extra))
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self.alive:
            return
        size = storage.nbytes()
        self.alive[key] = weakref.ref(storage, lambda _: self._let_go(key, size))
        self.level += size

    def _let_go(self, key: int, size: int) -> None:
        del self.alive[key]
        self.level -= size
        if key in self.held:
            self.gone += size

    def _reach(self, extra: int) -> None:
        self.peak = max(self.peak, self.level + extra)
        self.outer_peak = max(self.outer_peak, self.level + extra + self.gone)


def merged(operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """Each run of operators between matrix products as one, which moves as much as the largest of them."""
    found: list[Operator] = []
    for operator in operators:
        if found and not operator.flops and not found[-1].flops:
            found[-1] = Operator(0, max(found[-1].bytes, operator.bytes))
        else:
            found.append(operator)
    return tuple(found)


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet, name = func._overloadpacket, func._schema.name
    if packet is _aten.convolution_backward:
        return convolution_backward_flops(*(_shape(arg) for arg in args[:3]), *args[3:])
    if name.startswith("mlaan::conv1x1"):
        first = next(_tensors(out)) if "forward" in name else args[0]  # the one with the output's channels
        weight = out if "weight" in name else args[1]
        return 2 * first.numel() * weight.shape[1]
    formula = flop_registry.get(packet)
    return formula(*args, **kwargs, out_val=out) if formula else 0


def convolution_backward_flops(
    cotangent: Sequence[int], x: Sequence[int], weight: Sequence[int], *others: Any, out_shape: Any = None
) -> int:
    """Of aten.convolution_backward, from shapes: each of the two gradients costs what the forward does.

    torch's own count takes a grouped convolution's weight gradient for one of all channels with all.
    """
    transposed, asked = others[4], others[7]
    once = 2 * math.prod(x if transposed else cotangent) * math.prod(weight[1:])
    return once * (bool(asked[0]) + bool(asked[1]))


def onednn_scratch(func: Any, args: Any, out: Any) -> int:
    """Bytes that PyTorch's oneDNN convolutions in float32 take on a CPU besides their results.

    Maps laid out (N, C, H, W) are copied into blocks of channels, and what is written out of them, one after the other;
    with channels last only weights are. Maps in neither layout, or not in that of the input, are copied before.
    """
    packet = func._overloadpacket
    if args and isinstance(args[0], Tensor) and args[0].dtype != torch.float32:
        return 0
    if packet is _aten.convolution:
        x, weight, y = map(_size, (*args[:2], out))
        last = _channels_last(args[0]) or _channels_last(args[1])
        return _copies(last, args[0]) + (2 * weight if last else max(x + weight, y))
    if packet is _aten.convolution_backward:
        y, x, weight = map(_size, args[:3])
        last = _channels_last(args[1]) or _channels_last(args[2])
        copies = _copies(last, *args[:2])
        to_input, to_weight = args[10][0], args[10][1]
        if last:
            return copies + (3 if to_weight else 2) * weight
        extra = max(y + weight, x) - (weight if to_weight else 0) if to_input else 0
        return copies + max(extra, max(x + y, weight) if to_weight else 0)
    return 0


def _copies(last: bool, *maps: Tensor) -> int:
    layout = torch.channels_last if last else torch.contiguous_format
    return sum(_size(one) for one in maps if not one.is_contiguous(memory_format=layout))


def _laid_out(func: Any, args: Any, out: Any) -> Any:
    """A convolution's results in the layout that they have on a device, which is not always that on the meta device."""
    packet = func._overloadpacket
    if packet is _aten.convolution and (_channels_last(args[0]) or _channels_last(args[1])):
        return torch.empty_like(out, memory_format=torch.channels_last)
    if packet is _aten.convolution_backward and args[10][0]:
        last = _channels_last(args[1]) or _channels_last(args[2])
        layout = torch.channels_last if last else torch.contiguous_format
        return (torch.empty_like(out[0], memory_format=layout), *out[1:])
    return out


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def storage_key(tensor: Tensor) -> int:
    """Tells storages that are alive apart."""
    return tensor.untyped_storage()._cdata


def _shape(tensor: Tensor) -> Sequence[int]:
    return tensor.shape


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _moved(tensor: Tensor) -> int:
    """Bytes read or written of a tensor, which may be spread out of fewer."""
    return min(_size(tensor), tensor.untyped_storage().nbytes())
