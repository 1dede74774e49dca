"""The imports of the whole tree: no circles, arrows down the layers, no private names of others."""

from __future__ import annotations

from pathlib import Path

import import_graph
import pytest

ROOT = Path(__file__).parents[2]
LAYERS = import_graph.layers((ROOT / "docs" / "design.md").read_text("utf-8"))

# Those that are left, each to go: who breaks one takes it out of here.
KNOWN_CIRCLES = {
    frozenset({"backends/torch_backend/rows.py", "backends/triton_kernels/kernels.py"}),
}
KNOWN_ARROWS_UP = {("backends/triton_kernels/kernels.py", "backends/torch_backend/rows.py")}
KNOWN_PRIVATE: set[tuple[str, str]] = set()


@pytest.fixture(scope="module")
def imports():
    return import_graph.read(ROOT)


def assert_no_circles(imports, known=frozenset()):
    circles = set(imports.circles())
    new = "\n".join(imports.way_round(circle) for circle in circles - known)
    assert not new, f"files that import each other:\n{new}"
    assert not known - circles, "these circles are gone: take them out of KNOWN_CIRCLES"


def assert_arrows_down(imports, layers, known=frozenset()):
    up = import_graph.arrows_up(imports, layers)
    new = "\n".join(f"{file} → {other}" for file, other in sorted(up - known))
    assert not new, f"imports of a higher layer, or of another room of the same one:\n{new}"
    assert not known - up, "these arrows are gone: take them out of KNOWN_ARROWS_UP"


def assert_no_private_names(imports, known=frozenset()):
    found = {(file, name) for file, names in imports.private.items() for name in names}
    new = "\n".join(f"{file} uses {name}" for file, name in sorted(found - known))
    assert not new, f"private names of other files:\n{new}"
    assert not known - found, "these are gone: take them out of KNOWN_PRIVATE"


def test_there_are_no_circles(imports):
    assert len(imports.used) > 200
    assert_no_circles(imports, KNOWN_CIRCLES)


def test_arrows_go_down_the_layers(imports):
    assert len(LAYERS) > 10
    assert_arrows_down(imports, LAYERS, KNOWN_ARROWS_UP)


def test_every_room_has_a_file(imports):
    there = {import_graph.place(file, LAYERS)[1] for file in imports.used}
    assert there == {room for rooms in LAYERS for room in rooms}


def test_private_names_stay_in_their_files(imports):
    assert_no_private_names(imports, KNOWN_PRIVATE)


# ---------------------------------------------------------------------------------------------
# What would be found

CHECKS, AMID = "amidmath/arrays/checks.py", "amidmath/losses/amid.py"
TREE = {
    "amidmath/__init__.py": "from amidmath import backends as backends\n",
    CHECKS: "def namespace(): ...\n",
    AMID: "from amidmath.arrays.checks import namespace\n",
    "backends/__init__.py": "import amidmath.losses.amid\n",
    "integrations/script.py": "import amidmath as am\nam.backends.__name__\n",
}
SMALL = [["amidmath/arrays/"], ["amidmath/losses/"], ["backends/"], ["amidmath/__init__.py"]]
SMALL += [["integrations/*.py"]]


def small(folder, **changed):
    """The imports of a small tree, of which ``checks`` or ``amid`` has another text."""
    files = {"checks": CHECKS, "amid": AMID}
    for name, text in (TREE | {files[key]: text for key, text in changed.items()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return import_graph.read(folder)


def test_a_tree_without_faults(tmp_path):
    imports = small(tmp_path)
    assert imports.used["integrations/script.py"] == {"amidmath/__init__.py"}
    assert imports.used["backends/__init__.py"] == {AMID}
    assert_no_circles(imports)
    assert_arrows_down(imports, SMALL)
    assert_no_private_names(imports)


@pytest.mark.parametrize(
    "text",
    [
        "from amidmath.losses import amid\n",
        "def f():\n    import amidmath.losses.amid as amid\n    return amid\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from amidmath.losses.amid import namespace\n",
    ],
    ids=["at the top", "within a function", "for types"],
)
def test_a_circle_is_named(tmp_path, text):
    imports = small(tmp_path, checks=text)
    with pytest.raises(AssertionError, match=f"{CHECKS} → {AMID} → {CHECKS}"):
        assert_no_circles(imports)
    with pytest.raises(AssertionError, match=f"{CHECKS} → {AMID}"):
        assert_arrows_down(imports, SMALL)
    assert_no_circles(imports, {frozenset({CHECKS, AMID})})
    with pytest.raises(AssertionError, match="take them out of KNOWN_CIRCLES"):
        assert_no_circles(small(tmp_path), {frozenset({CHECKS, AMID})})


def test_a_circle_of_three(tmp_path):
    imports = small(tmp_path, checks="import amidmath\n")
    way = r"amidmath/__init__\.py → backends/__init__\.py → .*/amid\.py → .*/checks\.py → amid"
    with pytest.raises(AssertionError, match=way):
        assert_no_circles(imports)


def test_rooms_of_a_layer_do_not_know_each_other(tmp_path):
    beside = [["amidmath/arrays/", "amidmath/losses/"], *SMALL[2:]]
    with pytest.raises(AssertionError, match=f"{AMID} → {CHECKS}"):
        assert_arrows_down(small(tmp_path), beside)


@pytest.mark.parametrize("layers", [SMALL[1:], [*SMALL, ["amidmath/arrays/checks.py"]]])
def test_every_file_is_in_one_layer(tmp_path, layers):
    with pytest.raises(ValueError, match=f"{CHECKS} must be in one layer"):
        assert_arrows_down(small(tmp_path), layers)


@pytest.mark.parametrize(
    "text",
    [
        "from amidmath.arrays.checks import _hidden\n",
        "from amidmath.arrays import checks\nchecks._hidden()\n",
        "def f():\n    import amidmath.arrays.checks\n    amidmath.arrays.checks._hidden = 1\n",
    ],
)
def test_a_private_name(tmp_path, text):
    with pytest.raises(AssertionError, match=rf"{AMID} uses amidmath\.arrays\.checks\._hidden"):
        assert_no_private_names(small(tmp_path, amid=text))
