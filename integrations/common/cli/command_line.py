"""Command lines of the scripts: configuration files, errors, exit statuses."""

import dataclasses
import json
import sys
import warnings
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser

from amidmath.integrations.common.cli.memory import is_out_of_memory
from amidmath.integrations.common.errors import (
    InputError,
    TrainingError,
    first_paragraph,
    while_preparing,
)
from amidmath.integrations.common.storage.full_disk import refused_room

STUDENT_FLAG, TEACHER_FLAG = "--model_name_or_path", "--teacher_model_name_or_path"

# argparse's own would name all arguments before it explains them.
_USAGE = "%(prog)s [--config FILE] [--ARGUMENT VALUE ...]"

Groups = Mapping[str, Sequence[type | str]]
"""Titles of --help and what is under each: an argument's name, a pattern of names (``save_*``), or
a dataclass for its fields. A name is stronger than a pattern, and a pattern than a class; of equal
ones the first counts."""


class _Lines(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the defaults there are, and keeps the lines of what follows the arguments."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """argparse whose errors are one line, not all of the usage."""

    def error(self, message: str) -> NoReturn:
        """See the class."""
        raise InputError(f"{message} (--help lists all arguments)")


def parse(
    kinds: Sequence[type],
    argv: list[str] | None,
    epilog: str = "",
    groups: Groups | None = None,
    **parser_settings: Any,
) -> list[Any]:
    """The command line, over the YAML files that --config names, over the defaults.

    Args:
        kinds: dataclasses, whose fields are the arguments.
        argv: the words; None for those of the process.
        epilog: what --help says after the arguments, beside that there is --config.
        groups: what --help puts under one title; without it, each kind's arguments under its
            ``_argument_group_name``.
        **parser_settings: for argparse.

    Returns:
        One object of each kind.

    Raises:
        InputError: a value that does not fit, or an unknown argument.
        SystemExit: after --help.
    """
    config = "--config FILE reads arguments from a YAML file; the command line wins."
    parser = _Parser(
        cast("Any", tuple(kinds)),
        epilog=f"{config}\n\n{epilog}".strip(),
        allow_abbrev=False,
        **{"formatter_class": _Lines, "usage": _USAGE, **parser_settings},
    )
    if groups is not None:
        _regroup(parser, groups)
    words = _join_numbers(_expand_config(sys.argv[1:] if argv is None else argv))
    with warnings.catch_warnings(), while_preparing():
        # TRL's own default sets the old name of activation_checkpointing.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
        *found, unknown = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    if unknown:
        near = get_close_matches(unknown[0], parser._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all arguments"
        raise InputError(f"unknown argument {unknown[0]}; {hint}")
    return found


def require(values: Mapping[str, object], advice: str = "--help lists all arguments") -> None:
    """Raise InputError unless every flag has a value."""
    missing = [flag for flag, value in values.items() if not value]
    if missing:
        raise InputError(f"{', '.join(missing)} must be given ({advice})")


def check_alone(processes: int | None, work: str) -> None:
    """Raise InputError unless there is one process; None is a number that is not known."""
    if processes != 1:
        raise InputError(f"this was started with several processes; {work} runs in one")


def exit_status(work: Callable[[], object], when_interrupted: str) -> int:
    """Do a script's work; what goes wrong in a way that is known is one line of its errors.

    Returns:
        0 when it is done, 1 when it cannot go on, 2 when something given does not fit, 130 when
        interrupted.
    """
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory: {first_paragraph(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        if not refused_room(error):
            raise
        where = "" if error.filename is None else f": {error.filename} could not be written"
        print(f"error: the disk is full{where}; {when_interrupted}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr)
        return 130
    return 0


def _regroup(parser: _Parser, groups: Groups) -> None:
    """Put the arguments under the titles of their groups; the parsing stays the same."""
    titled = {title: parser.add_argument_group(title) for title in groups}
    for action in list(parser._actions):
        title = _title(action.dest, groups)
        if title is not None:
            for group in parser._action_groups:
                if action in group._group_actions:
                    group._group_actions.remove(action)
            titled[title]._group_actions.append(action)


def _title(name: str, groups: Groups) -> str | None:
    """The group of an argument; None for those of no group."""
    fits: tuple[Callable[[type | str], bool], ...] = (
        lambda member: member == name,
        lambda member: isinstance(member, str) and fnmatchcase(name, member),
        lambda member: isinstance(member, type) and name in _fields(member),
    )
    for fit in fits:
        for title, members in groups.items():
            if any(map(fit, members)):
                return title
    return None


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cast("Any", kind))}


def _expand_config(words: list[str]) -> list[str]:
    """Put what the --config files say before the other words, which override them.

    Of several files, a later one overrides an earlier.
    """
    words = [part for word in words for part in _split_config(word)]
    from_files: dict[str, list[str]] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word != "--config":
            others.append(word)
            continue
        path = next(rest, None)
        if path is None:
            raise InputError("--config must be followed by a YAML file")
        from_files |= _read_config(path)
    return [word for given in from_files.values() for word in given] + others


def _read_config(path: str) -> dict[str, list[str]]:
    """The words of the command line that stand for each line of a file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--config: no such file: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config: {path} is no YAML file: {first_paragraph(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config: {path} must hold lines of the form `argument: value`")
    found: dict[str, list[str]] = {}
    for name, value in content.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            found[str(name)] = [f"--{name}", *map(_as_word, values)]
    return found


def _split_config(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _as_word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def _join_numbers(words: list[str]) -> list[str]:
    """Turn ``--alpha -inf`` into ``--alpha=-inf``: argparse takes such a value for a flag."""
    joined: list[str] = []
    for word in words:
        flag_before = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if word.startswith("-") and flag_before and _is_number(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
