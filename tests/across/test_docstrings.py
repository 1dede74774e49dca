"""Docstrings say what a thing is or does: they begin with a noun or a verb."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("amidmath", "backends", "integrations", "benchmarks")


def first_words(source: str) -> list[tuple[str, str]]:
    """The name and the first word of the docstring of everything that has one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                found.append((getattr(node, "name", "the module"), text.split()[0]))
    return found


def test_the_first_word_is_found():
    source = '"""What it is."""\ndef f():\n    """Return it."""\n'
    assert first_words(source) == [("the module", "What"), ("f", "Return")]


def test_no_docstring_begins_with_what():
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, word in first_words(path.read_text("utf-8"))
        if word == "What"
    ]
    assert not wrong
