"""What a crash leaves of files and folders that are being replaced."""

import json
from pathlib import Path

import pytest

from amidmath.integrations.common.storage.whole_files import staged_dir, staged_file, write_json


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").touch()
    with pytest.raises(RuntimeError), staged_dir(output) as stage:  # noqa: PT012
        (stage / "new").touch()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [output, output / "old"]

    with staged_dir(output) as stage:
        (stage / "new").touch()
    assert list(tmp_path.rglob("*")) == [output, output / "new"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), staged_file(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text()) == {"old": 1}
    write_json(path, {"new": tmp_path})
    assert json.loads(path.read_text()) == {"new": str(tmp_path)}
