"""Files and folders that appear complete or not at all."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def staged_dir(output_dir: Path) -> Iterator[Path]:
    """Build a directory beside its destination and move it there only once it is complete.

    Args:
        output_dir: The destination; an earlier one is replaced, its parents are made.

    Yields:
        An empty directory to fill. If the block raises, it is deleted and the destination is left
        as it was.
    """
    output_dir = output_dir.absolute()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temp:
        # A temporary directory is private to its owner; the one inside has the usual permissions.
        stage = Path(temp, "new")
        stage.mkdir()
        yield stage
        if output_dir.exists():
            output_dir.rename(Path(temp, "old"))
        stage.rename(output_dir)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """The same for one file: write to the path this yields; ``path`` then has all of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; what JSON does not know is written as text."""
    with staged_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
