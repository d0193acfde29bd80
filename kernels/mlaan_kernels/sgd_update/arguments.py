"""What may be passed to `sgd_update`, for both of its forms."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GRAD_DTYPES = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.float64: (torch.float64,),
}


class Twin(NamedTuple):
    """An exponential moving average of one parameter: twin <- keep * twin + (1 - keep) * parameter."""

    param: int  # index into the list of parameters
    tensor: Tensor
    keep: float  # mu, in [0, 1]


def check_scalars(momentum: float, nesterov: bool) -> None:
    """Raises ValueError, naming the argument."""
    if momentum < 0:
        raise ValueError(f"momentum is {momentum}: it must be 0 or more")
    if nesterov and momentum == 0:
        raise ValueError("nesterov is set while momentum is 0: give a momentum above 0, or nesterov=False")


def check_tensors(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    twins: Sequence[Twin],
    momentum: float,
) -> None:
    """Raises ValueError for the first tensor that does not fit, by name: "momenta[3] ..."."""
    if len(grads) != len(params):
        raise ValueError(f"grads has {len(grads)} tensors, params has {len(params)}: give one per parameter")
    if len(momenta) != len(params) and (momenta or momentum != 0):
        raise ValueError(f"momenta has {len(momenta)} tensors, params has {len(params)}: give one per parameter")
    for index, param in enumerate(params):
        name = f"params[{index}]"
        if param.dtype not in GRAD_DTYPES:
            raise ValueError(f"{name} is {param.dtype}: float32 and float64 are supported")
        _expect(name, "dtype", param.dtype, params[0].dtype, "params[0]")
        _expect(name, "device", param.device, params[0].device, "params[0]")
        if param.numel() and not _is_dense(param):
            raise ValueError(f"{name} has shape {tuple(param.shape)} and strides {param.stride()}: it is not dense")
        grad = grads[index]
        if grad.dtype not in GRAD_DTYPES[param.dtype]:
            raise ValueError(f"grads[{index}] is {grad.dtype}, {name} is {param.dtype}: the pair is not supported")
        _expect(f"grads[{index}]", "dtype", grad.dtype, grads[0].dtype, "grads[0]")
        _expect(f"grads[{index}]", "device", grad.device, param.device, name)
        _expect(f"grads[{index}]", "shape", tuple(grad.shape), tuple(param.shape), name)
    for index, tensor in enumerate(momenta):
        _check_partner(f"momenta[{index}]", tensor, params[index], f"params[{index}]")
    for index, twin in enumerate(twins):
        if not 0 <= twin.param < len(params):
            raise ValueError(f"twins[{index}].param is {twin.param}: there are {len(params)} parameters")
        if not 0.0 <= twin.keep <= 1.0:
            raise ValueError(f"twins[{index}].keep is {twin.keep}: it must be in [0, 1]")
        _check_partner(f"twins[{index}].tensor", twin.tensor, params[twin.param], f"params[{twin.param}]")


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _check_partner(name: str, tensor: Tensor, param: Tensor, param_name: str) -> None:
    _expect(name, "dtype", tensor.dtype, param.dtype, param_name)
    _expect(name, "device", tensor.device, param.device, param_name)
    _expect(name, "shape", tuple(tensor.shape), tuple(param.shape), param_name)
    if param.numel():
        _expect(name, "strides", _strides(tensor), _strides(param), param_name)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides that mean something: 0 stands in for a dimension of size one."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _expect(name: str, what: str, found: object, expected: object, partner: str) -> None:
    if found != expected:
        raise ValueError(f"{name} has {what} {found}, {partner} has {expected}: they must be alike")
