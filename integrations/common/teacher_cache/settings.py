"""The settings of a cache, and the request of a command that makes one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from amidmath.integrations.common.cli.command_line import TEACHER_FLAG, require
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.teacher_cache.format import DTYPES, HELD_OUT


@dataclass
class CacheSettings:
    """The rows and tokens to cache of a teacher."""

    k: int = field(default=256, metadata={"help": "How many tokens a position."})
    log_probs_dtype: str = field(
        default="float16",
        metadata={
            "help": "In what log-probabilities are stored. float16 is wrong by 5e-4 of each of "
            "them; tails are float32 in any case.",
            "choices": list(DTYPES),
        },
    )
    shard_megabytes: float = field(
        default=256.0, metadata={"help": "About how large a file of the cache is."}
    )
    held_out: bool = field(
        default=False,
        metadata={
            "help": "Cache the held-out rows, in the folder held_out of output_dir, instead of the "
            "training rows."
        },
    )
    verify: bool = field(
        default=False,
        metadata={"help": "Read every finished file, and write those anew that are corrupt."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Say how large and how long, and write nothing."}
    )

    def check_cache(self) -> None:
        """Raise InputError on values out of range."""
        if self.k < 1:
            raise InputError(f"--k must be at least 1, got {self.k}")
        if not 0.0 < self.shard_megabytes < float("inf"):
            raise InputError(f"--shard_megabytes must be positive, got {self.shard_megabytes}")
        if self.log_probs_dtype not in DTYPES:
            raise InputError(
                f"--log_probs_dtype must be one of {', '.join(DTYPES)}, got "
                f"{self.log_probs_dtype!r}"
            )


class CacheConfig(Protocol):
    """Those of a loop's own settings that count for a cache, under their names."""

    output_dir: Any
    teacher_model_name_or_path: str | None
    teacher_model_revision: str
    temperature: Any
    vocab: str
    overwrite_output_dir: bool
    disable_tqdm: Any


Script = TypeVar("Script", bound=CacheSettings)
Config = TypeVar("Config", bound=CacheConfig)


@dataclass(frozen=True)
class Request(Generic[Script, Config]):
    """All that one command was told; teacher, dataset and folder are always given.

    Args:
        teacher: hub name or folder of the teacher.
        student: hub name or folder of the student, None where only the teacher is known.
        student_revision: branch, tag or commit of the student.
        output_dir: where the cache of the training rows goes.
        script: data, and what to cache.
        config: how rows are prepared, and the temperature.
    """

    teacher: str
    student: str | None
    student_revision: str
    output_dir: Path
    script: Script
    config: Config

    @property
    def folder(self) -> Path:
        """Where this cache goes."""
        return self.output_dir / HELD_OUT if self.script.held_out else self.output_dir

    @classmethod
    def of(
        cls, script: Script, config: Config, student: str | None, student_revision: str
    ) -> "Request[Script, Config]":
        """A request, if all that it needs is given and nothing that a cache does not know.

        Raises:
            InputError: something is missing, or was given in vain.
        """
        require(
            {
                TEACHER_FLAG: config.teacher_model_name_or_path,
                "--dataset_name": getattr(script, "dataset_name", None),
                "--output_dir": config.output_dir,
            }
        )
        refused = {
            "teacher_cache": "the cache that is made goes to --output_dir",
            "teacher_is_base": "such a teacher changes nothing by being cached: name it as teacher",
            "push_to_hub": "a cache is not published",
        }
        for name, reason in refused.items():
            if getattr(config, name, None):
                raise InputError(f"--{name} {getattr(config, name)}: {reason}; leave it out")
        folder, teacher = Path(str(config.output_dir)), str(config.teacher_model_name_or_path)
        return cls(teacher, student or None, student_revision, folder, script, config)
