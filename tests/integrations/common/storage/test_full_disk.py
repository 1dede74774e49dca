"""A disk that is full while something small is written: one line, and nothing half written."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.run.progress import MetricsFile
from amidmath.integrations.common.storage.full_disk import DiskFullError, append_line
from amidmath.integrations.common.storage.whole_files import write_json


class Full(io.FileIO):
    """A file whose disk takes ten bytes more."""

    def write(self, data: Any) -> int:
        if len(data) <= 10:
            return super().write(data)
        super().write(bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device", self.name)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text file that is opened has room."""

    def opened(path: Path, mode: str, *_: Any, **given: Any) -> Any:
        if "b" in mode:
            return io.FileIO(path, mode)
        return io.TextIOWrapper(Full(path, mode), encoding="utf-8", write_through=True)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.usefixtures("full")
def test_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    metrics = MetricsFile(path, "student")
    metrics.is_writer = True
    assert exit_status(lambda: metrics.append(2, {"loss": 1.0}), "kept") == 1
    assert path.read_bytes() == b'{"step": 1}\n'
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the disk is full: a line of {path} could not be written.")


@pytest.mark.usefixtures("full")
def test_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    assert exit_status(lambda: write_json(path, {"status": "running"}), "all is kept") == 1
    assert list(tmp_path.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: the disk is full: {path}.partial could not be written; all is kept"


def test_other_failures_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        append_line(tmp_path, "a")
    with pytest.raises(IsADirectoryError):
        exit_status(lambda: (tmp_path).write_text("a"), "kept")
    if Path("/dev/full").exists():
        with pytest.raises(DiskFullError, match="a line of /dev/full could not be written"):
            append_line(Path("/dev/full"), "a")
