"""The arguments of caching a teacher: data, what to cache, torch's settings."""

from dataclasses import dataclass

from trl import ModelConfig

from amidmath.integrations.common.cli.command_line import parse
from amidmath.integrations.common.teacher_cache.settings import CacheSettings, Request
from amidmath.integrations.torch_loop.settings.arguments import DistillScriptArguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig


@dataclass
class CacheArguments(CacheSettings, DistillScriptArguments):
    """Data, and what to cache of it."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.check_cache()


Arguments = Request[CacheArguments, AMiDConfig]
"""All that one command was told."""


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    script, config, model = parse(
        (CacheArguments, AMiDConfig, ModelConfig),
        argv,
        prog="cache_teacher.py",
        description="Cache a teacher's most probable tokens for a dataset.",
    )
    return Request.of(script, config, model.model_name_or_path, model.model_revision)
