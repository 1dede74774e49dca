"""The arguments of caching a teacher in JAX: data, what to cache, JAX's settings."""

from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, cast

from amidmath.integrations.common.cli.command_line import Groups, parse
from amidmath.integrations.common.teacher_cache.settings import CacheSettings, Request
from amidmath.integrations.jax_loop.settings.arguments import JaxScriptArguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig


def _said_anew(kind: type, name: str, text: str) -> Any:
    """A field of a class of settings, with other words in --help."""
    of = next(each for each in fields(cast("Any", kind)) if each.name == name)
    return field(default=of.default, metadata={**of.metadata, "help": text})


@dataclass
class CacheArguments(CacheSettings, JaxScriptArguments):
    """Data, and what to cache of it."""

    model_name_or_path: str | None = _said_anew(
        JaxScriptArguments,
        "model_name_or_path",
        "The student, whose tokenizer prepares the rows: hub name or local folder. Default: the "
        "teacher's prepares them.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.check_cache()


@dataclass
class JaxCacheConfig(JaxConfig):
    """A run's settings, of which a cache needs some."""

    output_dir: str | None = _said_anew(JaxConfig, "output_dir", "The folder of the cache.")
    overwrite_output_dir: bool = _said_anew(
        JaxConfig, "overwrite_output_dir", "Replace an earlier cache in output_dir."
    )
    per_device_eval_batch_size: int = _said_anew(
        JaxConfig,
        "per_device_eval_batch_size",
        "Rows that the teacher is asked of at once, on each device.",
    )
    mesh: str = _said_anew(
        JaxConfig,
        "mesh",
        "Axes of the device mesh and their sizes: data=2,fsdp=2,tensor=2. data copies the teacher, "
        "fsdp shares its weights out, tensor splits its layers; -1 takes the devices that are "
        "left.",
    )
    bf16: bool | None = _said_anew(
        JaxConfig, "bf16", "Compute in bfloat16; by default on accelerators."
    )
    temperature: float = _said_anew(JaxConfig, "temperature", "Divides the teacher's logits.")
    method: str = _said_anew(
        JaxConfig,
        "method",
        "The method that will learn from the cache, by name: distillm2 has rows of pairs.",
    )
    seed: int = _said_anew(JaxConfig, "seed", "Of the rows that eval_fraction holds out.")


# What --help puts together. JaxConfig and JaxScriptArguments have all that a run has.
GROUPS: Groups = {
    "data": (
        *("dataset_*", "eval_dataset_name", "eval_fraction", "seed", "model_*", "method"),
        *("max_length", "packing*", "completion_only_loss", "assistant_only_loss"),
        "drop_unlearnable_rows",
    ),
    "teacher": (
        *("teacher_model_name_or_path", "teacher_model_revision", "teacher_dtype"),
        *("temperature", "vocab"),
    ),
    "what to cache": (CacheSettings, "output_dir", "overwrite_output_dir", "disable_tqdm"),
    "devices and precision": ("mesh", "bf16", "per_device_eval_batch_size"),
    "refused here": ("teacher_cache", "teacher_is_base"),
    "not used here, for a shared --config": (JaxConfig, JaxScriptArguments),
}

CacheRequest: TypeAlias = Request[CacheArguments, JaxCacheConfig]
"""All that one command was told."""


def parse_arguments(argv: list[str] | None = None) -> CacheRequest:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    script, config = parse(
        (CacheArguments, JaxCacheConfig),
        argv,
        groups=GROUPS,
        prog="jax_cache_teacher.py",
        description="Cache a teacher's most probable tokens for a dataset, in JAX.",
    )
    return Request.of(script, config, script.model_name_or_path, script.model_revision)
