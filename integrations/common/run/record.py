"""The record of a run in run.json, and in what two runs differ."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Arguments that change neither the weights nor what is measured of them: where a run may go on
# with other values than it began with.
FREE = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "project"),
        *("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "report_to"),
        *("logging_strategy", "logging_steps", "logging_first_step", "skip_memory_metrics"),
        *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
        *("hub_always_push", "hub_revision", "enable_jit_checkpoint", "dataset_num_proc"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "local_rank"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_timeout"),
        *("do_train", "do_eval", "do_predict", "dry_run", "verbose"),
    }
)

# Files longer than this are known by their size and their ends: a teacher is read twice else.
_WHOLE_BYTES = 1 << 26

_END_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """The arguments and facts of a run, for run.json and to be compared.

    Args:
        arguments: the arguments by group, ``{"training": {"seed": 42, …}, …}``.
        reads: by argument, the names of what the run reads: models and data. Of files and folders
            the content is compared too.
        facts: what else run.json should say; not compared.
        processes: how many train together.
    """

    arguments: Mapping[str, Mapping[str, Any]]
    reads: Mapping[str, str | None]
    facts: Mapping[str, Any]
    processes: int = 1

    def content(self) -> dict[str, Any]:
        """For run.json."""
        found = {flag: _fingerprint(Path(name)) for flag, name in self.reads.items() if name}
        content = {
            **self.arguments,
            "processes": self.processes,
            "content": {flag: value for flag, value in found.items() if value},
            **self.facts,
        }
        plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return plain


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two runs differ that matters, each with both values."""
    found = []
    groups = [name for name, value in now.items() if isinstance(value, Mapping)]
    for group in groups:
        if group in ("versions", "content"):
            continue
        before, after = earlier.get(group, {}), now[group]
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if name not in FREE and old != new:
                found.append(f"--{name} was {_said(old)}, is {_said(new)}")
    if earlier.get("processes", 1) != now["processes"]:
        found.append(f"{earlier.get('processes', 1)} processes before, {now['processes']} now")
    for flag, digest in now["content"].items():
        if earlier.get("content", {}).get(flag, digest) != digest:
            found.append(f"the content of {flag} has changed")
    return found


def _said(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)


def _fingerprint(path: Path) -> str | None:
    """A file or folder by its files' sizes and bytes; None for a name on the hub."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    value = 0
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        if name.startswith("."):
            continue
        value = zlib.crc32(f"{name} {file.stat().st_size}\n".encode(), value)
        value = _crc32(file, value)
    return f"{value:08x}"


def _crc32(file: Path, value: int) -> int:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= _WHOLE_BYTES:
            return zlib.crc32(opened.read(), value)
        value = zlib.crc32(opened.read(_END_BYTES), value)
        opened.seek(size - _END_BYTES)
        return zlib.crc32(opened.read(), value)
