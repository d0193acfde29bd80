"""How much of the machine's memory a process can still have: a container or a job may be given less than all."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Groups(NamedTuple):
    """Where a version of Linux's control groups keeps a group's limit of memory, its use, and how much are files."""

    root: str
    limit: str
    used: str
    files: tuple[str, str]


_FIRST = _Groups(
    "/sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_SECOND = _Groups("/sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))


def free_memory() -> float:
    """Bytes that this process could still have, without swap; infinite where the system does not tell."""
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    free += _left_to_groups()
    return min(free, default=float("inf"))


def _left_to_groups() -> Iterator[int]:
    """Bytes left to the control group of this process and to each one above that has a limit: a container, a job."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, own = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            version = _FIRST if kinds else _SECOND
            below = PurePosixPath(own.lstrip("/"))
            for group in (below, *below.parents):
                with suppress(OSError, ValueError):  # "max" where there is no limit
                    yield _left(version, Path(version.root) / group)


def _left(version: _Groups, group: Path) -> int:
    """What was read of files counts as used, but is given up where memory is short."""
    limit, used = (int((group / name).read_text()) for name in (version.limit, version.used))
    parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit - used + sum(int(parts.get(name, "0")) for name in version.files)
