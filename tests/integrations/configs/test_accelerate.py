"""The launcher's configuration files, read by accelerate's own classes."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

FOLDER = Path(__file__).parents[3] / "integrations" / "configs" / "accelerate"
TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero3": DistributedType.DEEPSPEED,
}


def launched(name: str) -> argparse.Namespace:
    """The launcher's arguments when it is given the file."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), "script.py"]
    arguments = launch_command_parser().parse_args(command)
    arguments, defaults, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = list(defaults.deepspeed_config)
    return arguments


@pytest.fixture
def environment() -> Iterator[None]:
    """What is put into the environment does not stay there."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_every_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type is TYPES[name]
    assert config.mixed_precision == "bf16"
    arguments = launched(name)
    assert arguments.num_processes == 8
    assert arguments.num_machines == 1


@pytest.mark.usefixtures("environment")
def test_fsdp2_as_the_processes_see_it() -> None:
    os.environ.update(prepare_multi_gpu_env(launched("fsdp2")))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert "FULL" in str(plugin.state_dict_type)
    assert plugin.cpu_ram_efficient_loading is False


@pytest.mark.usefixtures("environment")
def test_zero3_as_the_processes_see_it() -> None:
    arguments = launched("zero3")
    os.environ.update(prepare_deepspeed_cmd_env(arguments)[1])
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == 3
    saved = "stage3_gather_16bit_weights_on_model_save"
    assert plugin.deepspeed_config["zero_optimization"][saved] is True
