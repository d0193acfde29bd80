"""The command line of the study."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # read once by torch: its profiler complains where there is no GPU

from benchmarks.study import collect, page, plots, results, tables
from mlaan.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Collects, measures if asked, and writes tables and plots; returns the exit code."""
    options = _parse(arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    file = options.out / "results.json"
    found = results.load(file) if file.exists() or options.runs is None else None
    if options.runs is not None:
        found = collect.collect(options.runs, options.configs, found, say=print)
    assert found is not None
    if options.measure:
        from benchmarks.study.measure import measure

        configs = collect.configs_of(found, options.configs)
        found = measure(found, configs, options.rounds, options.commit, say=print)
    results.save(found, file)
    blocks = tables.blocks(found)
    (options.out / "pairs.md").write_text(tables.all_pairs(found) + "\n", encoding="utf-8")
    for path in options.page or [options.out.with_suffix(".md")]:
        left = page.rewrite(path, blocks)
        print(f"page       {path}" + (f", without {', '.join(left)}" if left else ""))
    for picture in plots.draw(found, options.out):
        print(f"picture    {picture}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description="The study's tables and plots.")
    parser.add_argument("runs", nargs="?", type=Path, metavar="RUNS", help="folder that `mlaan table` wrote into")
    parser.add_argument("--out", type=Path, default=Path("docs/study"), help="folder of results.json, pairs.md, plots")
    parser.add_argument("--page", type=Path, nargs="+", help="Markdown pages with marked blocks (default: OUT.md)")
    parser.add_argument("--configs", type=Path, default=Path("configs/study"), help="folder of the runs' configs")
    parser.add_argument("--measure", action="store_true", help="measure time and peak memory of every variant's step")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default: 9)")
    parser.add_argument("--commit", help="recorded where the sources are a copy without their repository")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
