"""The numbered equations and the docstrings name each other, and nothing that does not exist."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import amidmath as am

ROOT = Path(__file__).parents[2]
PAGES = {p.stem: p.read_text("utf-8") for p in sorted(ROOT.glob("docs/derivations/*.md"))}
MODULES = {
    path.relative_to(ROOT): ast.parse(path.read_text("utf-8"))
    for path in sorted(ROOT.glob("amidmath/**/*.py"))
}
ANCHOR = r"[DGMSIN][1-9]\d*"
# What only gathers the others, and says nothing of its own.
WITHOUT_EQUATION = {"Divergence", "Loss", "divergence"}
Definition = ast.ClassDef | ast.FunctionDef


def named(text: str) -> set[str]:
    """The anchors that a text names, with those between the ends of "D3 to D5"."""
    found = set()
    for first, last in re.findall(rf"\b({ANCHOR})\b(?:\s+to\s+({ANCHOR})\b)?", text):
        found |= {first, last or first}
        if last:
            assert first[0] == last[0], f"{first} to {last}"
            assert int(first[1:]) < int(last[1:]), f"{first} to {last}"
            found |= {f"{first[0]}{j}" for j in range(int(first[1:]), int(last[1:]))}
    return found


def defined() -> Iterator[tuple[str, Definition]]:
    """The classes and functions of the package by name, and those of packages in it by theirs."""
    for path, tree in MODULES.items():
        package = ".".join(path.parent.parts[1:])
        for node in tree.body:
            if isinstance(node, Definition):
                yield node.name, node
                if package:
                    yield f"{package}.{node.name}", node


def public() -> Iterator[str]:
    """The public classes and functions, those of a public module by its name and theirs."""
    for name in sorted(set(am.__all__) - WITHOUT_EQUATION):
        value = getattr(am, name)
        if isinstance(value, ModuleType):
            yield from (f"{name}.{inner}" for inner in getattr(value, "__all__", ()))
        else:
            yield name


def docstrings() -> Iterator[tuple[Path, str]]:
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | Definition):
                yield path, ast.get_docstring(node) or ""


ANCHORS = Counter(re.findall(r'<a id="(\w+)"></a>', "".join(PAGES.values())))


@pytest.mark.parametrize(
    ("text", "anchors"),
    [
        ("docs: divergences, D3 to D5.", {"D3", "D4", "D5"}),
        ("docs: mixtures,\nM1, M2, M8 and M9.", {"M1", "M2", "M8", "M9"}),
        ("docs: mixtures, M3 to M6, M8", {"M3", "M4", "M5", "M6", "M8"}),
        ("docs: gradients, G9\n to\n G11", {"G9", "G10", "G11"}),
        ("float16 and XD3 and D0", set()),
    ],
)
def test_ranges_are_read(text: str, anchors: set[str]) -> None:
    assert named(text) == anchors


def test_every_anchor_is_one_and_carries_its_number() -> None:
    assert ANCHORS
    assert set(ANCHORS.values()) == {1}
    for page in PAGES.values():
        for anchor, label in re.findall(r'<a id="(\w+)"></a>\*\*\((\w+)\)', page):
            assert anchor == label
        assert page.count("<a id=") == len(re.findall(rf'<a id="{ANCHOR}"></a>\*\*\(', page))


@pytest.mark.parametrize("page", PAGES)
def test_equations_named_in_pages_exist(page: str) -> None:
    links = re.findall(r"\]\((?:([\w-]+)\.md)?#([\w-]+)\)", PAGES[page])
    for target, anchor in links:
        text = PAGES[target or page]
        headings = {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
            for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        assert f'<a id="{anchor}">' in text or anchor in headings, f"{page}: #{anchor}"


def test_equations_named_in_docstrings_exist() -> None:
    for path, text in docstrings():
        unknown = named(text) - set(ANCHORS)
        assert not unknown, f"{path} names {sorted(unknown)}"


@pytest.mark.parametrize("anchor", ANCHORS)
def test_equation_is_named_by_a_docstring(anchor: str) -> None:
    assert anchor in set().union(*(named(text) for _, text in docstrings()))


@pytest.mark.parametrize("anchor", ANCHORS)
def test_equation_says_what_computes_it(anchor: str) -> None:
    page = next(text for text in PAGES.values() if f'<a id="{anchor}">' in text)
    _, after = page.split(f'<a id="{anchor}">')
    equation = re.split(r'<a id="|^## ', after, flags=re.MULTILINE)[0]
    sentence = re.search(r"\b(?:Class|Function)(?:es|s)?:\s((?:`[\w.]+`,?\s?)+)\.\s*$", equation)
    assert sentence, f"{anchor} must end with Class: `X`. or Function: `x`."
    known = {name for name, _ in defined()}
    for name in re.findall(r"`([\w.]+)`", sentence[1]):
        assert name in known or hasattr(am, name), f"{anchor} names {name}"


@pytest.mark.parametrize("name", list(public()))
def test_public_name_has_an_equation(name: str) -> None:
    (docstring,) = (ast.get_docstring(node) or "" for known, node in defined() if known == name)
    assert named(docstring), f"{name} names no equation"
