"""From the keywords of `Engine` to config sections."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, cast

from mlaan.config import MethodConfig, OptimConfig, make
from mlaan.errors import UserError


def method_of(method: str | MethodConfig, options: dict[str, Any], keywords: Sequence[str]) -> MethodConfig:
    """The method's settings: by name with `options`, or a config object as it is.

    Args:
        keywords: the engine's own, to guess what a wrong one was meant to be.

    Raises:
        UserError: there is no such method, or it has no such setting.
    """
    if isinstance(method, type):
        raise UserError(f"method = {method.__name__} is a class: give an object of it, {method.__name__}()")
    if isinstance(method, str):
        if method not in MethodConfig.choices:
            known = ", ".join(sorted(MethodConfig.choices))
            raise UserError(f"method = {method!r} must be one of {known}; your own: import its module first")
        kind, settings = MethodConfig.choices[method], options
        _require_known(options, method, keywords, [f.name for f in fields(cast(Any, kind))])
    elif options:
        raise UserError(f"{next(iter(options))!r} belongs into the method's own config: method={method!r}")
    else:
        kind, settings = type(method), {f.name: getattr(method, f.name) for f in fields(cast(Any, method))}
    return make(kind, "method", **settings)


def optim_of(optim: str | OptimConfig, numbers: dict[str, float | bool | None]) -> OptimConfig:
    """The optimizer's settings; raises UserError for a name that there is not, and for numbers that do not fit."""
    given = {name: number for name, number in numbers.items() if number is not None}
    if isinstance(optim, OptimConfig):
        if given:
            raise UserError(f"{next(iter(given))!r} belongs into the optimizer's own config: optim={optim!r}")
        return optim
    if optim not in OptimConfig.choices:
        raise UserError(f"optim = {optim!r} must be one of {', '.join(sorted(OptimConfig.choices))}")
    return make(OptimConfig.choices[optim], "optim", **given)


def _require_known(options: Iterable[str], method: str, keywords: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError for a keyword that neither the engine nor the method has."""
    own = [name for name in keywords if name not in ("self", "options")]
    for name in options:
        if name not in known:
            likely = get_close_matches(name, [*own, *known], n=1) or get_close_matches(name, own, n=1, cutoff=0.4)
            hint = f"did you mean {likely[0]!r}?" if likely else f"choose from {', '.join([*own, *known])}"
            raise UserError(f"{name!r} is no keyword of Engine and no setting of method {method!r}: {hint}")
