"""Every script's --help by subject, and that grouping changes nothing of what is parsed."""

import re
from dataclasses import dataclass, field, fields

import pytest
from trl import ModelConfig

from amidmath.integrations.common.cli.command_line import Groups, parse
from amidmath.integrations.jax_loop.settings import cache_arguments
from amidmath.integrations.torch_loop.settings.arguments import (
    GROUPS,
    DistillScriptArguments,
    parse_arguments,
)
from amidmath.integrations.torch_loop.settings.config import AMiDConfig


@dataclass
class Some:
    """Arguments of a script."""

    save_when: str = field(default="never", metadata={"help": "When."})
    save_where: str | None = field(default=None, metadata={"help": "Where."})
    speed: float = 1.0
    left: int = 3


@dataclass
class Base:
    """Of which some are also here."""

    speed: float = 1.0


GROUPED: Groups = {
    "how": (Base,),
    "saving": ("save_*",),
    "where": ("save_where",),
}


def sections(text: str) -> dict[str, set[str]]:
    """The arguments under every title of a --help."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if title := re.fullmatch(r"(\S.*):", line):
            found[title[1]] = set()
        elif flag := re.match(r"  (?:-h, )?--(\w+)", line):
            found[list(found)[-1]].add(flag[1])
    return found


def test_a_name_is_stronger_than_a_pattern_and_that_than_a_class(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse((Some,), ["--help"], groups=GROUPED, prog="some.py")
    said = capsys.readouterr().out
    assert sections(said) == {
        "options": {"help", "left"},
        "how": {"speed"},
        "saving": {"save_when"},
        "where": {"save_where"},
    }
    assert "usage: some.py [--config FILE] [--ARGUMENT VALUE ...]" in said
    assert "(default: never)" in said
    assert "None" not in said


def test_groups_do_not_change_what_is_parsed() -> None:
    words = ["--speed", "2", "--save_where", "here", "--left", "-1"]
    assert parse((Some,), words, groups=GROUPED) == parse((Some,), words)


def test_the_jax_cache_names_what_it_uses_and_what_it_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cache_arguments.parse_arguments(["--help"])
    said = capsys.readouterr().out
    found = sections(said)
    assert list(found) == ["options", *cache_arguments.GROUPS]
    assert found.pop("options") == {"help"}
    unused = found.pop("not used here, for a shared --config")
    assert {"learning_rate", "policy", "lora_r", "baseline", "eval_steps"} <= unused
    assert not unused & {
        *("dataset_name", "eval_fraction", "model_name_or_path", "max_length", "packing", "seed"),
        *("teacher_dtype", "temperature", "k", "held_out", "dry_run", "output_dir", "mesh"),
    }
    words = " ".join(said.split())
    assert "--output_dir OUTPUT_DIR, --output-dir OUTPUT_DIR The folder of the cache." in words
    assert "Rows that the teacher is asked of at once" in words
    assert "The run folder." not in words
    assert "Held-out sequences" not in words


def test_every_argument_of_torch_distill_has_a_subject(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    found = sections(capsys.readouterr().out)
    assert list(found) == ["options", *GROUPS]
    assert found["options"] == {"help"}
    wanted = {
        "loss": {"divergence", "method", "schedule", "label_weight"},
        "sequences to learn from": {"policy", "max_new_tokens"},
        "student and LoRA": {"model_name_or_path", "lora_r", "freeze_embeddings"},
        "teacher": {"teacher_model_name_or_path", "teacher_cache", "teacher_is_base", "vocab"},
        "data": {"dataset_name", "max_length", "packing", "dataloader_num_workers"},
        "training": {"learning_rate", "max_steps", "per_device_train_batch_size", "seed"},
        "held-out rows and scores": {"eval_strategy", "eval_task", "eval_fraction", "baseline"},
        "run folder and checkpoints": {"output_dir", "save_steps", "dry_run"},
        "reporting": {"report_to", "logging_steps"},
        "processes": {"fsdp", "ddp_backend"},
    }
    for title, names in wanted.items():
        assert names <= found[title], title
    kinds = (DistillScriptArguments, AMiDConfig, ModelConfig)
    names = {each.name for kind in kinds for each in fields(kind) if each.init}
    assert names <= set().union(*found.values())
