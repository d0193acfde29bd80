"""The trained backbone alone: its weights, and the network as a program that runs without this package."""

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.models import Backbone

WEIGHTS, PROGRAM = "model.safetensors", "model.pt2"
Format = Literal["safetensors", "program", "both"]

_TOLERANCE = 1e-4
"""Greatest difference of reloaded logits, as a share of the largest: a program may add in another order."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from the trained network's.

    Attributes:
        differences: for each file the largest absolute difference over random images, after it was read again.
        largest: the largest absolute logit there, to compare with.
    """

    differences: dict[Path, float]
    largest: float


def save(
    source: Engine | Backbone,
    folder: str | Path,
    image_shape: Sequence[int] | None = None,
    *,
    form: Format = "both",
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    about: Mapping[str, str] | None = None,
) -> Exported:
    """Writes the backbone without its heads into `folder`, reads it again and compares logits.

    `model.safetensors` has the state dict with the network's own names, torchvision's for torchvision's networks;
    `model.pt2` is a `torch.export` program in evaluation mode for any number of images. Both say in their metadata
    the backbone's name, the number of classes, the image shape and the normalisation. Files appear whole or not at
    all, and only after the comparison.

    Args:
        source: of an engine with an average of the weights, that is written.
        image_shape: (C, H, W); an engine knows it.
        form: which of the two.
        normalisation: mean and standard deviation of each channel where 255 is 1; an engine may know it.
        about: more facts for the metadata.

    Raises:
        UserError: the folder cannot be written, torch.export cannot trace the network, or logits are not finite or
            differ; there are no new files then.
    """
    backbone = source.backbone if isinstance(source, Engine) else source
    if isinstance(source, Engine):
        image_shape = image_shape or source.input_shape
        normalisation = normalisation or source.site.normalisation
    if image_shape is None:
        raise UserError("image_shape = None: say the shape (C, H, W) of the images that a Backbone is exported for")
    net = copy.deepcopy(backbone.net).cpu().eval().requires_grad_(False)
    if isinstance(source, Engine) and source.average is not None:
        net.load_state_dict(source.average.weights())
    metadata = _metadata(backbone, image_shape, normalisation) | dict(about or {})
    images = torch.randn(3, *image_shape, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()).dtype)
    with torch.no_grad():
        logits = net(images)
    if not logits.isfinite().all():
        raise UserError(f"the logits of {backbone.name} are not finite: export weights from before, such as best.pt")
    folder, largest = Path(folder), logits.abs().max().item()
    differences: dict[Path, float] = {}
    with _writing(folder) as temporary:
        for name, write, read in ((WEIGHTS, _write_weights, _with_weights), (PROGRAM, _write_program, _load_program)):
            if form not in ("both", "safetensors" if name == WEIGHTS else "program"):
                continue
            write(net, temporary / name, metadata, images[:2])
            with torch.no_grad():
                again = read(net, temporary / name)(images)
            differences[folder / name] = difference = (again - logits).abs().max().item()
            if not difference <= _TOLERANCE * max(largest, 1e-30):
                raise UserError(
                    f"{folder / name} would differ from {backbone.name} by {difference:.1e} in logits of up to "
                    f"{largest:.1e}, so it was not written: leave it out with --format"
                )
        for path in differences:
            os.replace(temporary / path.name, path)
    return Exported(differences, largest)


def _metadata(
    backbone: Backbone, image_shape: Sequence[int], normalisation: tuple[Sequence[float], Sequence[float]] | None
) -> dict[str, str]:
    """Texts alone, because safetensors takes no other; lists are JSON."""
    facts = {
        "format": "pt",
        "backbone": backbone.name,
        "classes": str(backbone.num_classes),
        "image_shape": json.dumps(list(image_shape)),
    }
    if normalisation is not None:
        mean, std = normalisation
        facts |= {"mean": json.dumps(list(mean)), "std": json.dumps(list(std))}
    return facts


def _write_weights(net: nn.Module, path: Path, metadata: dict[str, str], images: Tensor) -> None:
    # A copy of each: safetensors refuses names that share memory, and strides other than the usual.
    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in net.state_dict().items()}
    path.write_bytes(as_bytes(state, metadata))  # save_file would let nobody else read it


def _with_weights(net: nn.Module, path: Path) -> nn.Module:
    """A copy of `net` with nothing but the file's weights."""
    again = copy.deepcopy(net)
    for value in again.state_dict().values():
        value.fill_(torch.nan if value.is_floating_point() else 0)
    again.load_state_dict(load_file(path), strict=True)
    return again


def _write_program(net: nn.Module, path: Path, metadata: dict[str, str], images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:  # the tracer's own errors have no common base
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torch.export cannot trace {type(net).__name__} ({reason}): write the weights alone, --format safetensors"
        ) from error
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


def _load_program(net: nn.Module, path: Path) -> nn.Module:
    with warnings.catch_warnings():  # of torch, about its own reading
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(path).module()


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files inside `folder`, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as temporary:
            yield Path(temporary)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write into {folder}: {reason}: give another --out") from error
