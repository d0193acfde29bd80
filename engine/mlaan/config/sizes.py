"""Amounts of memory as people write them."""

import re

from mlaan.errors import UserError

_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def bytes_of(text: str, key: str) -> int:
    """Bytes that `text` means: 12GiB, 12 GB (powers of 1000), 800MiB, 1.5g (as GiB) or a plain number.

    Raises:
        UserError: it is no amount of memory; `key` is what the message calls it.
    """
    found = _FORM.fullmatch(text)
    if found is None or not float(found[1]):
        raise UserError(f"{key} = {text!r} must be an amount of memory, such as 12GiB or 800MiB")
    number, unit, binary = found.groups()
    decimal = not binary and text.strip().upper().endswith("B")
    return int(float(number) * (1000 if decimal else 1024) ** _POWERS[unit.upper()])


def gib(size: float) -> str:
    """A number of bytes in words: GiB with a digit or two behind the point, MiB where it is less than one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
