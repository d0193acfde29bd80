"""A local module's work by torch.compile, in which each pass pays only for the gradients that it asks for.

torch.compile makes one backward graph with all gradients, and whoever asks for the input's alone pays for all of them:
a Propagate would compute every weight gradient. Here that graph is cut down to what a pass asks for, once for each kind
of pass, and each form is compiled when it first runs.
"""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Flag
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from mlaan.execute.module import Autocast, AutogradModule
from mlaan_kernels.blocks import Cotangent

Lowered = Callable[[list[Any]], Sequence[Any]]
"""A compiled graph. It takes its arguments in a list and may empty it, to let go of each after its last use."""


class Wanted(Flag):
    """The gradients that a pass asks for."""

    INPUT = 1
    WEIGHTS = 2
    BOTH = 3


class CompiledModule(AutogradModule):
    """A module's work over autograd, through one compiled graph.

    It is compiled in the first Forward of a batch shape, and once more each for Forwards that keep nothing and for
    Rebuilds; a backward when its kind of pass first runs. Dropout draws other random numbers than it does uncompiled,
    and a Rebuild draws those of its Forward.

    Where a module cannot be compiled, or would be for more shapes than torch.compile allows, one RuntimeWarning says
    so, and autograd runs it uncompiled from then on.

    Args:
        module: traced as a whole; code that torch.compile cannot trace in one graph keeps it from being compiled.
        autocast: the precision of its operators.
        name: what warnings and torch.compile's logs call it.
    """

    def __init__(self, module: nn.Module, autocast: Autocast = nullcontext, name: str = "a local module") -> None:
        self.compiled = _Compiled(module, name)
        super().__init__(self.compiled, autocast)

    def backward(
        self,
        saved: tuple[Tensor, Tensor],
        cotangents: Sequence[Cotangent],
        need_input: Sequence[bool],
        need_weight: bool,
        keep: bool,
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """See ModuleWork. The same passes as over plain autograd, each in its form of the backward."""
        if need_weight and len(cotangents) == 1 and need_input[0]:
            with self.compiled.asked_for(Wanted.BOTH):
                return super().backward(saved, cotangents, need_input, True, keep)
        with self.compiled.asked_for(Wanted.INPUT):
            inputs, _ = super().backward(saved, cotangents, need_input, False, keep or need_weight)
        if not need_weight:
            return inputs, []
        with self.compiled.asked_for(Wanted.WEIGHTS):
            _, grads = super().backward(saved, cotangents, [False] * len(cotangents), True, keep)
        return inputs, grads


class _Compiled(nn.Module):
    """A module that runs compiled, or as it is where it cannot be."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.wanted = Wanted.BOTH
        self.failed = False

        def run(x: Tensor) -> Tensor:
            return module(x)

        # torch.compile counts graphs per code object against its limit: each module has its own
        run.__code__ = run.__code__.replace(co_name=re.sub(r"\W", "_", name))
        self.run = torch.compile(run, backend=self._compile, dynamic=False, fullgraph=True)

    def forward(self, x: Tensor) -> Tensor:
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if not self.failed:
            try:
                return self.run(x)
            except FailOnRecompileLimitHit:
                self.give_up(
                    f"it met more shapes or settings than the {config.recompile_limit} that torch.compile allows; "
                    "keep batches of one shape, or raise torch._dynamo.config.recompile_limit"
                )
            except TorchDynamoException as error:  # while compiling: nothing has run, no statistic has moved
                self.give_up(_reason(error))
        return self.module(x)

    @contextmanager
    def asked_for(self, wanted: Wanted) -> Iterator[None]:
        """A backward inside computes only these gradients."""
        self.wanted = wanted
        try:
            with _saved_serves_again():
                yield
        finally:
            self.wanted = Wanted.BOTH

    def give_up(self, reason: str) -> None:
        """Run uncompiled from now on, and say why."""
        if not self.failed:
            self.failed = True
            warnings.warn(
                f"{self.name} runs uncompiled from here on, without fused operators: {reason}. "
                "train.compile = 'off' leaves compiling out",
                RuntimeWarning,
                stacklevel=2,
            )

    def _compile(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The backend of torch.compile: inductor, but for backward graphs in forms."""
        weights = {place for place, value in enumerate(inputs) if isinstance(value, nn.Parameter)}

        def lower_part(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Lowered:
            if not options.get("is_backward"):
                return lower(graph, inputs, **options)
            return _Backward(self, graph, _gradients(graph, weights), lambda part: lower(part, inputs, **options))

        return _inductor(graph, inputs, lower_part)


class _Backward:
    """A backward graph in the forms that passes ask for, each compiled when it first runs.

    Args:
        module: the module that it belongs to; it knows what the present pass asks for.
        graph: with all gradients.
        gradients: what kind each of its outputs is.
        lower: compiles a graph that has the same inputs, and may change it.
    """

    def __init__(
        self,
        module: _Compiled,
        graph: fx.GraphModule,
        gradients: Sequence[Wanted],
        lower: Callable[[fx.GraphModule], Lowered],
    ) -> None:
        self.module, self.graph, self.gradients, self.lower = module, graph, gradients, lower
        self.forms: dict[tuple[bool, ...], Lowered] = {}
        self.surroundings = _surroundings()
        self._boxed_call = True  # torch's word for: takes its arguments in a list

    def __call__(self, args: list[Any]) -> Sequence[Any]:
        kept = tuple(bool(kind & self.module.wanted) for kind in self.gradients)
        if kept not in self.forms:
            self.forms[kept] = self._make(kept)
        return self.forms[kept](args)

    def _make(self, kept: Sequence[bool]) -> Lowered:
        try:
            with self.surroundings():
                return self.lower(cut_down(self.graph, kept))
        except Exception as error:  # the forward ran compiled: its backward is this graph, if need be as it is
            self.module.give_up(_reason(error))
            part = cut_down(self.graph, kept)
            return lambda args: part(*args)


def cut_down(graph: fx.GraphModule, kept: Sequence[bool]) -> fx.GraphModule:
    """A copy of a graph in which the outputs that are not kept are None, without the operators that only they need.

    An operator with an `output_mask`, as convolution_backward is, computes only those of its results that are read.
    """
    part = copy.deepcopy(graph)
    [output] = part.graph.find_nodes(op="output")
    values = cast(Sequence[Any], output.args[0])
    output.args = (tuple(value if keep else None for value, keep in zip(values, kept, strict=True)),)
    part.graph.eliminate_dead_code()
    for node in part.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            for place, argument in enumerate(node.target._schema.arguments):
                if argument.name == "output_mask":
                    _narrow(node, place)
    part.recompile()
    return part


def _narrow(node: fx.Node, place: int) -> None:
    """Switch off the results of an operator that nobody reads; its mask is argument `place`."""
    assert all(user.target is operator.getitem for user in node.users)
    read = {cast(int, user.args[1]) for user in node.users}
    mask = cast(Sequence[bool], node.args[place])
    node.update_arg(place, [on and i in read for i, on in enumerate(mask)])
    node.meta["val"] = tuple(value if i in read else None for i, value in enumerate(node.meta["val"]))


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    cause = getattr(error, "inner_exception", error)  # of what a backend raised
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0].rstrip('.')}" if lines else type(cause).__name__


# What follows stands on private parts of PyTorch, as they are in 2.11; tests/execute/test_compiled.py sees them change.


def lower(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Lowered:
    """Compile a forward or backward graph by inductor."""
    from torch._inductor.compile_fx import compile_fx_inner

    return cast(Lowered, compile_fx_inner(graph, inputs, **options))


def _inductor(graph: fx.GraphModule, inputs: Sequence[Any], lower_part: Callable[..., Lowered]) -> Callable[..., Any]:
    """torch.compile's own way from a traced graph to forward and backward graphs, which `lower_part` compiles."""
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    # the cache would bring back backwards without forms
    with _saved_serves_again(), config.patch(enable_autograd_cache=False):
        return cast(Any, compile_fx)(graph, inputs, inner_compile=lower_part)


def _saved_serves_again() -> AbstractContextManager[Any]:
    """Backwards compiled inside write nothing into what the forward saved; those that run inside may run again."""
    from torch._functorch import config

    return config.patch(donated_buffer=False)


def _surroundings() -> Callable[[], AbstractContextManager[Any]]:
    """What torch.compile knows about the graph in hand, to be entered again when a form of it is compiled."""
    from torch._guards import TracingContext, tracing

    return partial(tracing, TracingContext.try_get())


def _gradients(graph: fx.GraphModule, weights: set[int]) -> list[Wanted]:
    """What kind of gradient each output of a backward graph is; one that is neither for certain is always computed."""
    from torch._functorch._aot_autograd.descriptors import GradAOTOutput, PlainAOTInput

    [output] = graph.graph.find_nodes(op="output")
    kinds: list[Wanted] = []
    for of in output.meta["desc"]:
        if isinstance(of, GradAOTOutput) and isinstance(of.grad_of, PlainAOTInput):
            kinds.append(Wanted.WEIGHTS if of.grad_of.idx in weights else Wanted.INPUT)
        else:
            kinds.append(Wanted.BOTH)
    return kinds
