"""Certify amidmath against mpmath and write the accuracy report.

Exit status 1 if a bound is not reached anywhere, with a list of where.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker; before NumPy and torch load

import mpmath
import numpy as np
import torch

import amidmath as am
from certify import report
from certify.measure import Record, measure
from certify.subjects import EXECUTORS, VOCABULARY, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certify.subjects import Point

OUT = {"reference": Path("docs/accuracy.md"), "compiled": Path("docs/accuracy-compiled.md")}
SHOWN = 40  # failures on the terminal; the report has them all
PROGRESS_SECONDS = 30.0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m certify", description=__doc__)
    parser.add_argument(
        "--budget-minutes",
        type=float,
        default=25.0,
        help="about how long to compute, which sets the number of points (default 25)",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help="of those points, measure the ones whose description matches the regular expression, "
        "for example 'loss KL.* float32' or 'seed 0/3/2864434397'; writes no report without --out",
    )
    parser.add_argument(
        "--backend",
        choices=EXECUTORS,
        default="reference",
        help="what computes: the array core (default), or the kernels that are compiled for the "
        "CPU, at the same points with the same bounds; these have no means",
    )
    defaults = ", ".join(f"{path} for {backend}" for backend, path in OUT.items())
    parser.add_argument(
        "--out", type=Path, help=f"the report, its results as JSON in build/ ({defaults})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument(
        "--largest", type=int, default=VOCABULARY, help=f"largest V (default {VOCABULARY})"
    )
    return parser.parse_args(argv)


def run(points: Sequence[Point], workers: int) -> list[Record]:
    """Measure the points, in order whatever order they finish in."""
    if workers == 1:
        return [record for point in points for record in measure(point)]
    started = said = time.monotonic()
    found: dict[int, list[Record]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(measure, point): n for n, point in enumerate(points)}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            now = time.monotonic()
            if now - said > PROGRESS_SECONDS or len(found) == len(points):
                said = now
                failed = sum(not r.reached for records in found.values() for r in records)
                print(
                    f"{now - started:.0f} s: {len(found)} of {len(points)} points, "
                    f"{failed} results beyond their bounds",
                    file=sys.stderr,
                )
    return [record for n in sorted(found) for record in found[n]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = arguments(argv)
    budget = 60.0 * options.budget_minutes * options.workers
    points = list(plan(options.seed, budget, options.largest, options.backend))
    if options.only:
        points = [p for p in points if re.search(options.only, p.label)]
    if not points:
        print(f"certify: error: no point matches {options.only!r}", file=sys.stderr)
        return 2
    records = run(points, options.workers)
    failed = report.failures(records)
    out = options.out or (None if options.only else OUT[options.backend])
    if out is not None:
        command = _command(options)
        versions = (
            f"amidmath {am.__version__}, mpmath {mpmath.__version__}, "
            f"NumPy {np.__version__}, torch {torch.__version__}"
        )
        largest = max(p.size for p in points)
        text = report.markdown(records, command, versions, largest, options.backend)
        report.write(out, text, report.as_json(records, command, versions))
        print(f"wrote {out} and {report.results_path(out)}")
    for record in failed[:SHOWN]:
        print(report.describe(record))
    if len(failed) > SHOWN:
        print(f"... and {len(failed) - SHOWN} more")
    print(f"{len(records)} results at {len(points)} points, {len(failed)} beyond their bounds")
    return 1 if failed else 0


def _command(options: argparse.Namespace) -> str:
    given = {"budget-minutes": (options.budget_minutes, 25.0), "seed": (options.seed, 0)}
    given |= {"largest": (options.largest, VOCABULARY), "workers": (options.workers, 2)}
    flags = [f"--{name} {value:g}" for name, (value, usual) in given.items() if value != usual]
    flags += [f"--backend {options.backend}"] if options.backend != "reference" else []
    flags += [f"--only '{options.only}'"] if options.only else []
    return "make certify" + (f' ARGS="{" ".join(flags)}"' if flags else "")


if __name__ == "__main__":
    sys.exit(main())
