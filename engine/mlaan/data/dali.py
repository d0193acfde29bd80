"""Batches that NVIDIA DALI decodes: on the CPU, or on a GPU with its JPEG decoders.

DALI draws nothing: it is given the paths and the boxes that the other loaders would take. So the images are theirs, up
to the rounding of its resizing (tests: one or two of 255 levels), the place is all the state there is, and any
loader's run can be gone on with. Its own checkpointing is not needed.
"""

import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from mlaan.data.dataset import Batch
from mlaan.data.files import ImageFiles, decode
from mlaan.data.loader import Loader, mixed_seed
from mlaan.data.prefetch import SideStream, ahead
from mlaan.data.store import Unreadable
from mlaan.data.view_loader import signed
from mlaan.data.views import ViewPlan
from mlaan.errors import UserError
from mlaan_kernels.normalize_augment import normalize_augment

_AHEAD = 2
"""Batches that DALI works on at a time."""
_HARDWARE_SHARE = 0.65
"""Of the JPEGs, for the decoders that some GPUs have in hardware; the rest is decoded by the GPU's cores."""


def why_not() -> str | None:
    """Why DALI cannot be used here, and what to do; None if it can."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "NVIDIA DALI is not installed: pip install 'mlaan[dali]'"
    return None


class _Order(NamedTuple):
    """What DALI is asked for in one batch, image by image.

    Attributes:
        numbers: of the images.
        paths: uint8, the characters.
        starts, shapes: (2,) int64, the box: in training of the image, in testing of the resized image.
        resized: (2,) float32, height and width of the whole image before the box is cut; testing only.
    """

    numbers: list[int]
    paths: list[np.ndarray]
    starts: list[np.ndarray]
    shapes: list[np.ndarray]
    resized: list[np.ndarray]


class DaliLoader(Loader):
    """Endless epochs over image files, decoded and cut by DALI; made ready on the device as by `ViewLoader`."""

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
        super().__init__(len(files), batch=batch, device=device, shuffle=training, drop_last=training, seed=seed)
        self.files, self.sizes, self.plan, self.training = files, files.sizes, plan, training
        self.workers = max(1, workers)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self._side = SideStream(self.device) if self.device.type == "cuda" else None
        self._gone: set[int] = set()

    def batches(self, epoch: int, first: int) -> Iterator[Batch | None]:
        """Raises UserError where no image of a batch can be read."""
        return ahead(self._decoded(epoch, first), self._prepare, self._side)

    def identity(self) -> dict[str, int]:
        return super().identity() | {"files": self.files.fingerprint()}

    def _prepare(self, decoded: tuple[Tensor, Tensor, Tensor]) -> Batch:
        pixels, labels, seeds = decoded
        if self._side is not None:
            pixels = pixels.clone()
            # DALI takes its memory back when it is asked for the next batch; this waits for no step of training.
            torch.cuda.current_stream(self.device).synchronize()
        seeds, labels = (tensor.to(self.device, non_blocking=True) for tensor in (seeds, labels))
        images = normalize_augment(pixels, self._mean, self._std, seeds, flip=self.training, dtype=torch.float32)
        return Batch(images, labels)

    def _decoded(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor] | None]:
        """Pixels (N, size, size, 3) uint8, labels (N,) int64 and seeds (N,) int64 of each batch."""
        chosen = self.order(epoch).split(self.batch)[: len(self)]
        size = self.plan.size_at(epoch) if self.training else self.plan.size
        due, pipeline = first, None
        asked: deque[_Order] = deque()
        while due < len(chosen):
            if pipeline is None:
                asked.clear()
                pipeline = self._pipeline(size, self._ask(epoch, chosen[due:], size, asked))
            try:
                [images] = pipeline.run()
            except RuntimeError as error:
                self._blame(asked[0], error)
                pipeline = None  # it cannot be used after an error
                continue
            numbers = asked.popleft().numbers
            few = self.training and len(numbers) == 1 < self.batch
            seeds = [signed(mixed_seed(self.seed, epoch, 1 + number)) for number in numbers]
            pixels = torch.from_dlpack(images.as_tensor())
            yield None if few else (pixels, self.files.labels[numbers], torch.tensor(seeds, dtype=torch.int64))
            due += 1

    def _ask(
        self, epoch: int, batches: Sequence[Tensor], size: int, asked: deque[_Order]
    ) -> Iterator[tuple[list[np.ndarray], ...]]:
        """What DALI is to do, batch by batch."""
        for numbers in batches:
            asked.append(self._order(epoch, numbers.tolist(), size))
            inputs = (asked[-1].paths, asked[-1].starts, asked[-1].shapes)
            yield inputs if self.training else (*inputs, asked[-1].resized)

    def _order(self, epoch: int, numbers: list[int], size: int) -> _Order:
        kept = [number for number in numbers if number not in self._gone]
        if not kept:
            raise UserError(
                f"none of the {len(numbers)} images of a batch can be read ({self.files.path(numbers[0])}): is "
                "data.root still there? Go on with --resume when it is"
            )
        order = _Order(kept, [], [], [], [])
        view = self.plan.train_view(epoch)
        for number in kept:
            height, width = map(int, self.sizes[number])
            order.paths.append(np.frombuffer(self.files.path(number).encode(), dtype=np.uint8))
            if self.training:
                box = view.box(height, width, Random(mixed_seed(self.seed, epoch, 1 + number)))
            else:
                shorter = min(height, width)
                rows, columns = (int(self.plan.resize * side / shorter) for side in (height, width))
                order.resized.append(np.array([rows, columns], dtype=np.float32))
                box = (*(round((side - size) / 2) for side in (rows, columns)), size, size)
            order.starts.append(np.array(box[:2], dtype=np.int64))
            order.shapes.append(np.array(box[2:], dtype=np.int64))
        return order

    def _pipeline(self, size: int, source: Iterator[tuple[list[np.ndarray], ...]]) -> Any:
        from nvidia.dali import fn as operators
        from nvidia.dali import types as constants
        from nvidia.dali.pipeline import Pipeline

        fn, types = cast(Any, operators), cast(Any, constants)  # what they hold is made when they are imported
        on_gpu = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self.batch,
            num_threads=self.workers,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=_AHEAD,
        )
        decoder: dict[str, Any] = (
            {"device": "mixed", "hw_decoder_load": _HARDWARE_SHARE} if on_gpu else {"device": "cpu"}
        )
        decoder |= {"output_type": types.RGB, "adjust_orientation": False}
        smooth: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": True, "dtype": types.UINT8}
        kinds = [types.UINT8, types.INT64, types.INT64, *(() if self.training else (types.FLOAT,))]
        with pipeline:
            paths, starts, shapes, *resized = fn.external_source(
                source=source, num_outputs=len(kinds), dtype=kinds, ndim=[1] * len(kinds), batch=True
            )
            encoded = fn.io.file.read(paths)
            if self.training:
                parts = fn.decoders.image_slice(encoded, starts, shapes, axes=[0, 1], **decoder)
                pipeline.set_outputs(fn.resize(parts, size=[size, size], **smooth))
            else:
                images = fn.resize(fn.decoders.image(encoded, **decoder), size=resized[0], **smooth)
                pipeline.set_outputs(fn.slice(images, starts, shapes, axes=[0, 1]))
        pipeline.build()
        return pipeline

    def _blame(self, order: _Order, error: RuntimeError) -> None:
        """Finds the files of a batch that DALI failed on, which it does not tell reliably."""
        found = 0
        for number in order.numbers:
            try:
                decode(self.files.path(number))
            except Unreadable as unreadable:
                found += 1
                self._gone.add(number)
                self.leave_out(unreadable)
        if not found:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"data.backend = 'dali' failed where no file is to blame ({reason}): set data.backend = 'torchvision'"
            ) from None
