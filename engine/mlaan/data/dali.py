"""Batches that NVIDIA DALI decodes: on the CPU, or on a GPU with its JPEG decoders.

DALI draws nothing: it is given the paths and the boxes that the other loaders would take. So the images are theirs, up
to the rounding of its resizing (one of 255 levels; a few at the edges, beyond which it repeats the image's outermost
pixels), the place is all the state there is, and any loader's run can be gone on with. Its own checkpointing is not
needed.
"""

import importlib.util
import os
from collections import deque
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mlaan.data.dataset import Batch
from mlaan.data.files import ImageFiles
from mlaan.data.loader import mixed_seed
from mlaan.data.store import Unreadable
from mlaan.data.view_loader import ViewLoader, Views, signed
from mlaan.data.views import ViewPlan
from mlaan.errors import UserError

_AHEAD = 2
"""Batches that DALI works on at a time."""
_HARDWARE_SHARE = 0.65
"""Of the JPEGs, for the decoders that some GPUs have in hardware; the rest is decoded by the GPU's cores."""


def why_not() -> str | None:
    """Why DALI cannot be used here, and what to do; None if it can."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "NVIDIA DALI is not installed: pip install 'mlaan[dali]'"
    return None


class DaliLoader(ViewLoader):
    """Endless epochs over image files, decoded and cut by DALI; the rest is as in `ViewLoader`.

    Its batches raise a UserError, too, where DALI fails at images that torchvision can read.
    """

    def __init__(
        self,
        files: ImageFiles,
        plan: ViewPlan,
        *,
        training: bool,
        batch: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        workers: int,
    ) -> None:
        """As `ViewLoader`; `files` with their sizes, `workers` the number of threads, at least 1.

        Raises ValueError without sizes, UserError where DALI is not installed.
        """
        if reason := why_not():
            raise UserError(f"data.backend = 'dali', but {reason}, or set data.backend = 'torchvision'")
        if files.sizes is None:
            raise ValueError("files without sizes: `mlaan data check` finds them out")
        workers = max(1, workers)
        super().__init__(
            files, plan, training=training, batch=batch, device=device, mean=mean, std=std, seed=seed, workers=workers
        )
        self.files, self._sizes = files, files.sizes.astype(np.int64)

    def _prepare(self, views: Views) -> Batch:
        """Copies first what DALI gave, and what it takes back.

        Shared by DLPack instead, it would be freed by a thread of DALI's that waits for the whole device, which a CUDA
        graph that is being captured does not stand.
        """
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        images = cast(Any, views.pixels)
        pixels = torch.empty(images.shape(), dtype=torch.uint8, device=self.device)
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        return super()._prepare(views._replace(pixels=feed_ndarray(images, pixels, cuda_stream=stream)))

    def _read(self, epoch: int, first: int) -> Iterator[Views]:
        """What DALI gives, its pixels as a tensor of DALI's.

        Where it fails, another pipeline begins with the batch that is due, without the files that are to blame.
        """
        size = self.plan.size_at(epoch) if self.training else self.plan.size
        chosen = [numbers.tolist() for numbers in self.order(epoch).split(self.batch)][first : len(self)]
        gone: dict[int, tuple[str, str]] = {}
        seeds: deque[Tensor] = deque()
        pipeline, failed = None, -1
        for due, numbers in enumerate(chosen):
            pixels, drawn = torch.empty(0), torch.empty(0)
            while kept := [number for number in numbers if number not in gone]:
                if pipeline is None:
                    seeds.clear()
                    pipeline = self._pipeline(size, self._asked(epoch, [kept, *chosen[due + 1 :]], size, seeds))
                try:
                    [images] = pipeline.run()
                    pixels, drawn = images.as_tensor(), seeds.popleft()
                    break
                except RuntimeError as error:
                    reason = str(error)  # the error itself would keep the pipeline, with its threads and memory
                pipeline = None  # it cannot be used any more
                bad = self._unreadable(kept)
                if failed == due and not bad:
                    raise _failure(reason)
                failed = due
                gone |= bad
            labels = self.files.labels[kept]
            if self.device.type == "cuda":
                labels, drawn = labels.pin_memory(), drawn.pin_memory()
            yield Views(pixels, labels, drawn, [gone[number] for number in numbers if number in gone])

    def _asked(
        self, epoch: int, chosen: Sequence[list[int]], size: int, seeds: deque[Tensor]
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """What DALI is to do, batch by batch; the batch's seeds are added to `seeds`.

        Paths (N, L) uint8; starts and shapes (N, 2) int64 of the boxes, in testing of the resized image; in testing
        the height and width (N, 2) float32 of that.
        """
        view = self.plan.train_view(epoch)
        for numbers in chosen:
            drawn = [mixed_seed(self.seed, epoch, 1 + number) for number in numbers]
            seeds.append(torch.tensor([signed(seed) for seed in drawn], dtype=torch.int64))
            # Whole arrays, as DALI takes lists one by one, in Python; a path ends at the zeros that fill up its row.
            paths = np.array([os.fsencode(self.files.path(number)) for number in numbers])
            paths = paths.view(np.uint8).reshape(len(numbers), -1)
            sizes = self._sizes[numbers]
            if self.training:
                pairs = zip(sizes.tolist(), drawn, strict=True)
                boxes = [view.box(height, width, Random(seed)) for (height, width), seed in pairs]
                yield paths, np.array([box[:2] for box in boxes]), np.array([box[2:] for box in boxes])
            else:
                resized = (self.plan.resize * sizes / sizes.min(1, keepdims=True)).astype(np.int64)
                starts = np.rint((resized - size) / 2).astype(np.int64)
                yield paths, starts, np.full_like(starts, size), resized.astype(np.float32)

    def _pipeline(self, size: int, source: Iterator[tuple[np.ndarray, ...]]) -> Any:
        from nvidia.dali import fn as operators
        from nvidia.dali import types as constants
        from nvidia.dali.pipeline import Pipeline

        fn, types = cast(Any, operators), cast(Any, constants)  # what they hold is made when they are imported
        decoder: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}
        device = None
        if self.device.type == "cuda":
            device = torch.cuda.current_device() if self.device.index is None else self.device.index
            # Colours are interpolated as on the CPU: by default they would not be.
            decoder |= {"device": "mixed", "hw_decoder_load": _HARDWARE_SHARE, "jpeg_fancy_upsampling": True}
        pipeline = Pipeline(
            batch_size=self.batch, num_threads=self.workers, device_id=device, prefetch_queue_depth=_AHEAD
        )
        smooth: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": True, "dtype": types.UINT8}
        kinds = [types.UINT8, types.INT64, types.INT64, *(() if self.training else (types.FLOAT,))]
        with pipeline:
            paths, starts, shapes, *resized = fn.external_source(
                source=source, num_outputs=len(kinds), dtype=kinds, ndim=[1] * len(kinds), batch=True
            )
            encoded = fn.io.file.read(paths, dont_use_mmap=True)  # mapped, a file that is cut would kill the process
            if self.training:
                parts = fn.decoders.image_slice(encoded, starts, shapes, axes=[0, 1], **decoder)
                pipeline.set_outputs(fn.resize(parts, size=[size, size], **smooth))
            else:
                images = fn.resize(fn.decoders.image(encoded, **decoder), size=resized[0], **smooth)
                pipeline.set_outputs(fn.slice(images, starts, shapes, axes=[0, 1]))
        pipeline.build()
        return pipeline

    def _unreadable(self, numbers: list[int]) -> dict[int, tuple[str, str]]:
        """(name, reason) of those files of a batch that are to blame, which DALI does not tell reliably.

        It fails as well at an image that is no longer as large as it was when it was checked: sizes are looked at too.
        """
        found: dict[int, tuple[str, str]] = {}
        for number in numbers:
            try:
                self._sizes[number] = self.files.read(number).shape[1:]
            except Unreadable as unreadable:
                found[number] = unreadable.name, unreadable.reason
        return found


def _failure(reason: str) -> UserError:
    reason = " ".join(reason.split()).rpartition("encountered: ")[2]
    return UserError(
        f"data.backend = 'dali' failed twice at images that torchvision can read ({reason[:300]}): "
        "set data.backend = 'torchvision'"
    )
