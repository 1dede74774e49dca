"""Distil every family of models for a step, in every way that the loops have, and write the table.

Exit status 1 where a loss differs from the one computed in float64 from the models' logits, or a
run ends in a traceback.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker; before torch loads

from families import report
from families.build import every_family
from families.run import SCRIPTS, Family, run

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = Path("docs/families.md")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m families", description=__doc__)
    parser.add_argument("--only", nargs="+", help="these families; writes no page without --out")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--out", type=Path, help=f"the page (default {OUT})")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = arguments(argv)
    names = options.only or every_family()
    found: dict[str, Family] = {}
    context = multiprocessing.get_context("spawn")
    take = partial(run, scripts=tuple(options.scripts))
    # A process keeps something of every model that it has had.
    with context.Pool(options.workers, maxtasksperchild=8) as pool:
        for name, family in pool.imap_unordered(take, names):
            found[name] = family
            print(f"{len(found)} of {len(names)}: {report.line(name, family)}", flush=True)
    ordered = {name: found[name] for name in names}
    out = options.out or (None if options.only else OUT)
    if out is not None:
        out.write_text(report.markdown(ordered), encoding="utf-8")
        print(f"wrote {out}")
    return 1 if any(family.is_wrong for family in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
