"""The configuration files: each can be read, every method has one."""

from pathlib import Path

import pytest

import amidmath as am
from amidmath.integrations import configs
from amidmath.integrations.torch_loop.settings.arguments import parse_arguments

FOLDER = Path(next(iter(configs.__path__))) / "methods"
FILES = sorted(FOLDER.glob("*.yaml"))
REQUIRED = [
    *("--model_name_or_path", "s", "--teacher_model_name_or_path", "t"),
    *("--dataset_name", "d", "--output_dir", "o", "--use_cpu"),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_names_a_method_and_a_policy(path: Path) -> None:
    config = parse_arguments([*REQUIRED, "--config", str(path)]).config
    assert path.stem.startswith(config.method)
    assert config.recipe().losses(0, 10)
    assert config.data_policy().describe()


def test_every_method_has_a_config() -> None:
    named = {parse_arguments([*REQUIRED, "--config", str(p)]).config.method for p in FILES}
    assert named == set(am.methods.METHODS)


def test_a_later_config_overrides_an_earlier_and_the_command_line_both() -> None:
    files = [str(FOLDER / "gkd.yaml"), str(FOLDER / "minillm.yaml")]
    words = ["--config", files[0], f"--config={files[1]}", "--method_kwargs", "{}"]
    config = parse_arguments(
        [*REQUIRED, *words, "--policy", "mixed", "--student_fraction", "0.25"]
    ).config
    assert (config.method, config.policy, config.student_fraction) == ("minillm", "mixed", 0.25)
