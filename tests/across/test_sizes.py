"""Files that can be read at once, and folders that can be looked over."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("amidmath", "backends", "integrations")
LINES = 300
FILES = 14  # __init__.py among them
MORE = {
    # A file a divergence, which the registry finds by itself.
    "amidmath/divergences": 25,
}


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_file_is_long():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources()
    }
    assert len(lengths) > 100
    assert not {name: lines for name, lines in lengths.items() if lines > LINES}


def test_no_folder_is_full():
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in sources())
    full = {name: count for name, count in counts.items() if count > MORE.get(name, FILES)}
    assert not full
    assert not {name for name, most in MORE.items() if counts[name] <= FILES}
