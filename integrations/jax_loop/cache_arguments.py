"""What the script that caches a teacher can be told in JAX: data, what to cache, JAX's settings."""

from dataclasses import dataclass
from typing import TypeAlias

from amidmath.integrations.jax_loop.arguments import JaxConfig, JaxScriptArguments
from amidmath.integrations.shared.cache_settings import CacheSettings, Request
from amidmath.integrations.shared.command_line import parse


@dataclass
class CacheArguments(CacheSettings, JaxScriptArguments):
    """Data, and what to cache of it."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.check_cache()


CacheRequest: TypeAlias = Request[CacheArguments, JaxConfig]
"""All that one command was told."""


def parse_arguments(argv: list[str] | None = None) -> CacheRequest:
    """The command line, over the YAML file that --config names, over the defaults.

    Raises:
        InputError: a value that does not fit, an unknown argument, or one that is missing.
        SystemExit: after --help.
    """
    script, config = parse(
        (CacheArguments, JaxConfig),
        argv,
        prog="jax_cache_teacher.py",
        description="Cache a teacher's most probable tokens for a dataset, in JAX.",
    )
    return Request.of(script, config, script.model_name_or_path, script.model_revision)
