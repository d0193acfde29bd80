"""Numbers in words, the same in every display and report."""

import math
from collections.abc import Iterable, Sequence


def percent(share: float) -> str:
    """A share from 0 to 1 with one decimal; a dash for nan."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def counted(count: int, thing: str) -> str:
    """The number with its thing, which gets an s unless there is one of it."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on; a dash for nan."""
    if math.isnan(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def mebibytes(count: int) -> str:
    """Bytes in MiB, or in GiB from ten of them on."""
    return f"{count / 2**30:.1f} GiB" if count >= 10 * 2**30 else f"{count / 2**20:.0f} MiB"


def loading(wait: float, left_out: int) -> list[str]:
    """How long the steps waited for images, where that is worth a word, and how many images could not be read."""
    words = [f"{percent(wait)} waiting for data"] if wait >= 0.05 else []
    return words + ([f"{counted(left_out, 'image')} left out"] if left_out else [])


def scaling(skipped: int | None, scale: float | None) -> list[str]:
    """What float16's loss scales did, if there are any: the least of them, and the updates left out so far."""
    if skipped is None or scale is None:
        return []
    return [f"loss scale {scale:.6g}", f"{counted(skipped, 'update')} left out"]


def split_name(name: str) -> tuple[int, str]:
    """A local loss's name, "3.cascaded", as module and kind."""
    module, _, kind = name.partition(".")
    return int(module), kind


def by_module(values: dict[str, float]) -> dict[int, dict[str, float]]:
    """Values named "module.kind" as a table: module, then kind, both in their order."""
    table: dict[int, dict[str, float]] = {}
    for name, value in values.items():
        module, kind = split_name(name)
        table.setdefault(module, {})[kind] = value
    return table


def kinds(names: Iterable[str]) -> list[str]:
    """The kinds of local losses among the names, in the order of their first appearance."""
    return list(dict.fromkeys(split_name(name)[1] for name in names))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells as lines, every column flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of 0 … count - 1, evenly spaced, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
