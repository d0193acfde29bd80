"""Weights from elsewhere: torchvision's pretrained ones, or a file of tensors."""

import pickle
import urllib.error
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision.models as tv
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from mlaan.errors import UserError
from mlaan.models.backbone import Backbone


def load_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Puts weights from elsewhere into a backbone that was built as `name`; on the meta device there is nothing to do.

    A last layer for another number of classes stays as it was drawn, and the position embeddings of torchvision's
    vision transformers are resized for images of another size; a warning says so.

    Args:
        weights: "pretrained", torchvision's default ImageNet weights, out of its cache or from a network; or the path
            of a .safetensors file or of a .pth or .pt state dict (in such a file nothing is executed).

    Raises:
        UserError: no such weights here, or weights of another net; nothing has been changed then.
    """
    if next(backbone.net.parameters()).is_meta:
        return
    state = _pretrained(name) if weights == "pretrained" else _read(Path(weights))
    _adapt_positions(backbone, state, weights)
    own = backbone.net.state_dict()
    last = {id(p) for p in backbone.last_layer.parameters()}
    head = [key for key, p in backbone.net.named_parameters() if id(p) in last]
    if any(key in state and state[key].shape != own[key].shape for key in head):
        theirs = next(len(state[key]) for key in head if key in state)
        warnings.warn(
            f"model.weights = {weights!r} has {theirs} classes, the data have {backbone.num_classes}: "
            f"the last layer, {head[0].rpartition('.')[0]}, starts afresh",
            stacklevel=2,
        )
        state = {key: value for key, value in state.items() if key not in head} | {key: own[key] for key in head}
    for key in [*own, *state]:
        if key.endswith("num_batches_tracked") and key not in state:  # older files do not have it
            continue
        if key not in own or key not in state or own[key].shape != state[key].shape:
            raise UserError(
                f"model.weights = {weights!r} does not fit {backbone.name}: {key} is {_size(state, key)} there and "
                f"{_size(own, key)} here: take the weights of this net, for images of as many channels"
            )
    backbone.net.load_state_dict(state, strict=False)


def _pretrained(name: str) -> dict[str, Tensor]:
    try:
        weights = tv.get_model_weights(name)["DEFAULT"]
    except (ValueError, KeyError):
        raise UserError(
            f"model.weights = 'pretrained': torchvision has no weights for model.name = {name!r}: give a file, or "
            "leave model.weights empty"
        ) from None
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (urllib.error.URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"model.weights = 'pretrained' needs {weights.url} once, which cannot be had here ({error}): put that file "
            f"into {folder}, or give model.weights = FILE"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.weights = {str(path)!r} is no file: give a .safetensors, .pth or .pt file, or 'pretrained'"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"model.weights = {str(path)!r} holds more than tensors, and nothing in it was executed: "
            "save model.state_dict() alone"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"model.weights = {str(path)!r} cannot be read: {error}".splitlines()[0]) from error
    if isinstance(state, Mapping) and isinstance(state.get("engine"), Mapping):
        raise UserError(
            f"model.weights = {str(path)!r} is a checkpoint of a run: `mlaan export {path}` writes its backbone alone, "
            "as a .safetensors file"
        )
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights = {str(path)!r} is no state dict: save model.state_dict() alone")
    return dict(state)


def _adapt_positions(backbone: Backbone, state: dict[str, Tensor], weights: str) -> None:
    net, key = backbone.net, "encoder.pos_embedding"
    if not isinstance(net, VisionTransformer) or key not in state:
        return
    theirs, ours = state[key].shape, net.encoder.pos_embedding.shape
    if theirs == ours or len(theirs) != 3 or theirs[2] != ours[2]:
        return
    state[key] = interpolate_embeddings(net.image_size, net.patch_size, OrderedDict(state))[key]
    warnings.warn(
        f"model.weights = {weights!r} is for {theirs[1] - 1} patches, the images have {ours[1] - 1}: "
        "its position embeddings are resized",
        stacklevel=3,
    )


def _size(state: Mapping[str, Tensor], key: str) -> str:
    if key not in state:
        return "missing"
    return "x".join(map(str, state[key].shape)) or "one number"
