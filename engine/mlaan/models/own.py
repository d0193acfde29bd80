"""A net out of a user's own file: `my_model.py:make`."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from mlaan.errors import UserError
from mlaan.models.backbone import Backbone


def is_own(name: str) -> bool:
    """Whether a model.name is FILE.py:FUNCTION."""
    return name.endswith(".py") or ".py:" in name


def own_net(name: str, num_classes: int, image_shape: Sequence[int]) -> nn.Module | Backbone:
    """What the function makes that `name`, FILE.py:FUNCTION, names; the file is taken from the working folder.

    Of `num_classes`, `in_channels`, `image_size` (H, W) and `image_shape` (C, H, W) it is given those it takes by
    name; a `**kwargs` gets `num_classes`.

    Raises:
        UserError: no such file or function, other arguments that it must have, an error in the file, or a result that
            is neither a module nor a Backbone.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not function:
        raise UserError(f"model.name = {name!r} names no function: write FILE.py:FUNCTION")
    if not path.is_file():
        raise UserError(
            f"model.name = {name!r}: there is no file {path.absolute()}: run this from the folder it was trained in, "
            "or give its path from this folder"
        )
    given = {
        "num_classes": num_classes,
        "in_channels": image_shape[0],
        "image_size": tuple(image_shape[1:]),
        "image_shape": tuple(image_shape),
    }
    with _errors_named(name, path):
        module = _run(path)
        make = getattr(module, function, None)
        if not callable(make):
            found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise UserError(f"model.name = {name!r}: {file} has no function {function!r}, but {', '.join(found)}")
        net = make(**_taken(name, make, given))
    if not isinstance(net, nn.Module | Backbone):
        raise UserError(f"model.name = {name!r} gave a {type(net).__name__}: return an nn.Module or a mlaan.Backbone")
    return net


def _taken(name: str, make: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters.values()
    known = {p.name: given[p.name] for p in parameters if p.name in given and p.kind is not p.POSITIONAL_ONLY}
    missing = [
        p.name
        for p in parameters
        if p.name not in known and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing:
        raise UserError(f"model.name = {name!r} must have {', '.join(missing)}: it is given only {', '.join(given)}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known.setdefault("num_classes", given["num_classes"])
    return known


def _run(path: Path) -> Any:
    """The file as a module, run anew at every call; files beside it can be imported."""
    spec = importlib.util.spec_from_file_location(f"mlaan_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


@contextmanager
def _errors_named(name: str, path: Path) -> Iterator[None]:
    """Turns an error in the user's file into one line with its place there."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
        place = "" if isinstance(error, SyntaxError) or not places else f" in line {places[-1]}"  # it says its own
        raise UserError(f"model.name = {name!r}: {type(error).__name__}{place}: {error}") from error
