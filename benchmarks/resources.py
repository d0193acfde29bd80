"""What the Triton kernels need of a GPU, found without one: docs/kernels.md is made, and checked, here.

    python -m benchmarks.resources [--write | --check | --op NAME] [--sample COUNT]

Compiles every variant of every operator for sm_80 and sm_90. A variant that does not compile, spills, asks for more
shared memory than a block can have, or multiplies matrices without Hopper's wgmma is named, and the exit code is 1.
Figures are kept in build/resources/ under a hash of all that they come from: only what has changed is compiled. The
page has a hash of each operator's variants, too, so that one made from other sources is found out without compiling.
"""

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import ROOT
from benchmarks.offline import SHARED_LIMITS, Resources, compile_variant, digest, faults_of, fingerprint
from benchmarks.resources_page import Row, Section, differences, render

if TYPE_CHECKING:
    from mlaan_kernels.launching import Variant

PAGE = ROOT / "docs" / "kernels.md"
CACHE = ROOT / "build" / "resources"
Task = tuple[str, int, int]
"""Operator, position among its variants, compute capability."""


def folders(package: str) -> list[str]:
    """The operators of `package` that have a triton.py."""
    places = importlib.import_module(package).__path__
    return sorted(file.parent.name for place in places for file in Path(place).glob("*/triton.py"))


def variants(package: str, operator: str) -> list["Variant"]:
    """What the operator says may be launched.

    Raises:
        Exception: its triton.py cannot be imported, or does not say.
        ValueError: it lists nothing, or one name twice.
    """
    found = list(importlib.import_module(f"{package}.{operator}.triton").variants())
    names = [variant.name for variant in found]
    if not found:
        raise ValueError("variants() is empty")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"more than one variant is named {', '.join(twice)}")
    return found


def survey(
    package: str, operators: Sequence[str], cache: Path, processes: int, sample: int | None = None
) -> tuple[list[Section], list[str]]:
    """Compile what the cache does not have.

    Args:
        sample: look at so many variants of each operator, those whose hashes are least; None: at all.

    Returns:
        The page's sections, and what is wrong, a line for each fault.
    """
    sections, faults, missing = [], [], {}
    for operator in operators:
        try:
            listed = variants(package, operator)
            keys = {(i, cc): fingerprint(variant, cc) for cc in SHARED_LIMITS for i, variant in enumerate(listed)}
        except Exception as error:  # whatever ails one operator must not hide the others
            faults.append(f"{operator}: its triton.py gives no variants: {type(error).__name__}: {error}")
            continue
        chosen = sorted(sorted(range(len(listed)), key=lambda i: keys[i, min(SHARED_LIMITS)])[:sample])
        rows = {i: Row(listed[i], {}) for i in chosen}
        sections.append(Section(operator, digest(keys.values()), list(rows.values())))
        for capability, i in product(SHARED_LIMITS, chosen):
            file = cache / f"{keys[i, capability]}.json"
            if file.exists():
                rows[i].found[capability] = Resources(**json.loads(file.read_text(encoding="utf-8")))
            else:
                missing[operator, i, capability] = rows[i], file
    for task, result in _compiled(package, list(missing), processes):
        row, file = missing[task]
        if isinstance(result, str):
            faults.append(f"{row.variant.name}: does not compile for sm_{task[2]}: {result}")
        else:
            row.found[task[2]] = result
            _keep(file, result)
    return sections, faults + [fault for part in sections for row in part.rows for fault in faults_of(*row)]


def _compiled(package: str, tasks: list[Task], processes: int) -> Iterator[tuple[Task, Resources | str]]:
    """(task, its Resources or an error's words), as they come."""
    if not tasks:
        return
    print(f"compiling {len(tasks)} kernels", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(min(processes, len(tasks)), get_context("spawn")) as pool:
        yield from zip(tasks, pool.map(_compile, [package] * len(tasks), tasks, chunksize=4), strict=True)


def _compile(package: str, task: Task) -> Resources | str:
    operator, position, capability = task
    try:
        with redirect_stdout(io.StringIO()):  # Triton prints the whole code of what its assembler refuses
            return compile_variant(variants(package, operator)[position], capability)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        cause = next((line for line in lines if "fatal" in line), lines[-1])
        return f"{type(error).__name__}: {cause}"


def _keep(file: Path, resources: Resources) -> None:
    """In one step, because another process may be at the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(resources)), encoding="utf-8")
    fresh.replace(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parse(arguments)
    from mlaan_kernels.choice import interpreting

    if interpreting():
        print("TRITON_INTERPRET is set: unset it, the interpreter compiles nothing", file=sys.stderr)
        return 2
    operators = folders(options.package)
    if options.op and options.op not in operators:
        print(f"--op {options.op}: those with a triton.py are {', '.join(operators)}", file=sys.stderr)
        return 2
    chosen = [options.op] if options.op else operators
    sections, faults = survey(options.package, chosen, options.cache, options.processes, options.sample)
    if options.op:
        print("\n".join(part.text() for part in sections))
    if options.write and not faults:
        options.page.write_text(render(sections), encoding="utf-8")
    if options.check:
        page = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        if changes := differences(page, sections, whole=options.sample is None):
            faults += [f"{options.page} is not what the sources give: make kernels", *changes[:40]]
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description="The kernels' resource table.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write docs/kernels.md")
    what.add_argument("--check", action="store_true", help="fail if docs/kernels.md is not what the sources give")
    what.add_argument("--op", metavar="NAME", help="print this operator's table alone")
    parser.add_argument("--sample", type=int, metavar="COUNT", help="compile so many variants of each operator alone")
    parser.add_argument("--package", default="mlaan_kernels", help="whose operators")
    parser.add_argument("--page", type=Path, default=PAGE, help="another file than docs/kernels.md")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where figures are kept")
    parser.add_argument("--processes", type=int, default=2, help="that compile at a time")
    options = parser.parse_args(arguments)
    if options.write and options.sample:
        parser.error("--write needs all variants: leave --sample out")
    return options


if __name__ == "__main__":
    sys.exit(main())
