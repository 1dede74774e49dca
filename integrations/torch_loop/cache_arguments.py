"""What the script that caches a teacher can be told."""

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from amidmath.integrations.shared.command_line import TEACHER_FLAG, parse, require
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.top_k_format import DTYPES, HELD_OUT
from amidmath.integrations.torch_loop.arguments import DistillScriptArguments
from amidmath.integrations.torch_loop.config import AMiDConfig


@dataclass
class CacheArguments(DistillScriptArguments):
    """Data, and what to cache of it."""

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

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.k < 1:
            raise InputError(f"--k must be at least 1, got {self.k}")
        if not 0.0 < self.shard_megabytes < float("inf"):
            raise InputError(f"--shard_megabytes must be positive, got {self.shard_megabytes}")
        if self.log_probs_dtype not in DTYPES:
            raise InputError(
                f"--log_probs_dtype must be one of {', '.join(DTYPES)}, got "
                f"{self.log_probs_dtype!r}"
            )


@dataclass(frozen=True)
class Arguments:
    """All that one command was told; teacher, dataset and folder are always given.

    Args:
        teacher: hub name or folder of the teacher.
        student: hub name or folder of the student, None where only the teacher is known.
        output_dir: where the cache of the training rows goes.
        script: data, and what to cache.
        config: how rows are prepared, and the temperature.
        model: the student's revision.
    """

    teacher: str
    student: str | None
    output_dir: Path
    script: CacheArguments
    config: AMiDConfig
    model: ModelConfig

    @property
    def folder(self) -> Path:
        """Where this cache goes."""
        return self.output_dir / HELD_OUT if self.script.held_out else self.output_dir


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
    require(
        {
            TEACHER_FLAG: config.teacher_model_name_or_path,
            "--dataset_name": script.dataset_name,
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
    return Arguments(
        str(config.teacher_model_name_or_path),
        model.model_name_or_path or None,
        Path(str(config.output_dir)),
        script,
        config,
        model,
    )
