"""Distil a causal language model, by any method and data policy, on TRL's SFTTrainer.

    python integrations/torch_distill.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --dataset_name data.jsonl --output_dir runs/mine \
        --divergence kl --order pr --alpha -1 --lam 0.1

Takes a hub name, a local folder or a file (.json, .jsonl, .parquet, .txt, .csv) with TRL's
columns, and the arguments of TRL's SFTConfig and ModelConfig. ``--help`` lists them. The same
command again goes on with a run that did not end.
"""

import os
import sys

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# On a CPU that another process uses too, threads that spin while they wait cost far more than
# they save: with two cores, a step took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.quiet import quiet
from amidmath.integrations.common.run.distill import distill
from amidmath.integrations.torch_loop.devices.processes import main_console
from amidmath.integrations.torch_loop.run.distillation import TorchLoop
from amidmath.integrations.torch_loop.settings.arguments import parse_arguments


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the run is complete, 1 when training cannot go on, 2 when something given does not
        fit, 130 when interrupted.
    """
    with quiet(argv) as log:
        return exit_status(
            lambda: distill(TorchLoop(parse_arguments(argv)), main_console(), log),
            "checkpoints, if any, are kept",
        )


if __name__ == "__main__":
    sys.exit(main())
