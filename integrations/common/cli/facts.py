"""Facts for people, a line each."""

from collections.abc import Mapping

from rich.console import Console


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """A header: a line a fact."""
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"[bold]{name:>{width}}[/bold]  {value}", highlight=False, soft_wrap=True)
    console.print()
