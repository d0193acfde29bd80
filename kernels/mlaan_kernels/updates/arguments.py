"""What may be passed to an update, for all rules and both forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Update:
    """The arguments that all rules share; the README of this folder says what they mean.

    `states` holds the rule's lists under the names that its face gives them; `uses_states` is False where the
    rule's numbers leave them alone, and they may then be empty.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    states: Mapping[str, Sequence[Tensor]]
    twins: Sequence[Twin]
    learning_rate: float | Tensor
    uses_states: bool = True
    step: float | Tensor = 1
    excluded: Sequence[bool] = ()
    masters: Sequence[Tensor] = ()
    inverse_scale: float = 1.0
    grad_scale: Tensor | None = None
    check_finite: bool = False
    finite: Tensor | None = None

    @property
    def weights(self) -> Sequence[Tensor]:
        """What the rule works on: the masters where there are some."""
        return self.masters or self.params

    @property
    def reports(self) -> bool:
        """Whether the update returns its flag."""
        return self.check_finite or self.finite is not None

    def of_nothing(self) -> Tensor | None:
        """The checks and the flag of an update without parameters."""
        self.check()
        if self.finite is not None:
            return (~self.finite).to(torch.int32).reshape(())
        return torch.zeros((), dtype=torch.int32) if self.check_finite else None

    def check(self) -> None:
        """Raises ValueError for the first argument that does not fit, by name: "momenta[3] ..."."""
        self._check_lengths()
        for name in ("learning_rate", "step", "grad_scale"):
            self._check_number(name, torch.float32)
        self._check_number("finite", torch.bool)
        for index, param in enumerate(self.params):
            self._check_param(index, param)
        for lists in ({"masters": self.masters}, self.states):
            for name, tensors in lists.items():
                for index, tensor in enumerate(tensors):
                    self._check_partner(f"{name}[{index}]", tensor, index)
        for index, twin in enumerate(self.twins):
            if not 0 <= twin.param < len(self.params):
                raise ValueError(f"twins[{index}].param is {twin.param}: there are {len(self.params)} parameters")
            if not 0.0 <= twin.keep <= 1.0:
                raise ValueError(f"twins[{index}].keep is {twin.keep}: it must be in [0, 1]")
            self._check_partner(f"twins[{index}].tensor", twin.tensor, twin.param)

    def _check_lengths(self) -> None:
        count = len(self.params)
        must = {"grads": self.grads, **(self.states if self.uses_states else {})}
        may = {"masters": self.masters, "excluded": self.excluded, **self.states}
        for name, items in {**may, **must}.items():
            if len(items) != count and (items or name in must):
                what = "entries" if name == "excluded" else "tensors"
                raise ValueError(f"{name} has {len(items)} {what}, params has {count}: give one per parameter")

    def _check_number(self, name: str, dtype: torch.dtype) -> None:
        number = getattr(self, name)
        if not isinstance(number, Tensor):
            return
        if number.dtype != dtype or number.numel() != 1:
            found = f"{number.dtype} of shape {tuple(number.shape)}"
            raise ValueError(f"{name} is {found}: as a tensor it must be one {dtype}")
        if self.params:
            _expect(name, "device", number.device, self.params[0].device, "params[0]")

    def _check_param(self, index: int, param: Tensor) -> None:
        name, grad, weight = f"params[{index}]", self.grads[index], self.weights[index]
        if self.masters and param.dtype != torch.bfloat16:
            raise ValueError(f"{name} is {param.dtype}: only bfloat16 parameters have masters, leave these out")
        if not self.masters and param.dtype not in GRAD_DTYPES:
            advice = ", and bfloat16 with masters in float32" if param.dtype == torch.bfloat16 else ""
            raise ValueError(f"{name} is {param.dtype}: float32 and float64 are supported{advice}")
        if self.masters and weight.dtype != torch.float32:
            raise ValueError(f"masters[{index}] is {weight.dtype}: masters must be float32")
        _expect(name, "dtype", param.dtype, self.params[0].dtype, "params[0]")
        _expect(name, "device", param.device, self.params[0].device, "params[0]")
        if param.numel() and not is_dense(param):
            raise ValueError(f"{name} has shape {tuple(param.shape)} and strides {param.stride()}: it is not dense")
        if grad.dtype not in GRAD_DTYPES[weight.dtype]:
            raise ValueError(f"grads[{index}] is {grad.dtype}, {name} is {param.dtype}: the pair is not supported")
        _expect(f"grads[{index}]", "dtype", grad.dtype, self.grads[0].dtype, "grads[0]")
        _expect(f"grads[{index}]", "device", grad.device, param.device, name)
        _expect(f"grads[{index}]", "shape", tuple(grad.shape), tuple(param.shape), name)

    def _check_partner(self, name: str, tensor: Tensor, index: int) -> None:
        param, partner = self.params[index], f"params[{index}]"
        weight = "masters" if self.masters else "params"
        _expect(name, "dtype", tensor.dtype, self.weights[index].dtype, f"{weight}[{index}]")
        _expect(name, "device", tensor.device, param.device, partner)
        _expect(name, "shape", tuple(tensor.shape), tuple(param.shape), partner)
        if param.numel():
            _expect(name, "strides", _strides(tensor), _strides(param), partner)


def check_at_least_zero(**numbers: float) -> None:
    """Raises ValueError for the first that is below 0, by name."""
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name} is {number}: it must be 0 or more")


def check_adam(betas: tuple[float, float], epsilon: float, step: float | Tensor) -> None:
    """Raises ValueError for the numbers of AdamW and LAMB that make no sense."""
    for index, beta in enumerate(betas):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{index}] is {beta}: it must be in [0, 1)")
    check_at_least_zero(epsilon=epsilon)
    if not isinstance(step, Tensor) and step < 1:
        raise ValueError(f"step is {step}: updates count from 1")


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides that mean something: 0 stands in for a dimension of size one."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _expect(name: str, what: str, found: object, expected: object, partner: str) -> None:
    if found != expected:
        raise ValueError(f"{name} has {what} {found}, {partner} has {expected}: they must be alike")
