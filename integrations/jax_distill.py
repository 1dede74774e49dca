"""Distil a causal language model, by any method and data policy, on a mesh of JAX devices.

    python integrations/jax_distill.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --dataset_name data.jsonl --output_dir runs/mine \
        --divergence kl --order pr --alpha -1 --lam 0.1

The flags, the data, the run folder and the configuration files are those of torch_distill.py;
``--mesh`` says how devices share the work. ``--help`` lists all. The same command again goes on
with a run that did not end.
"""

import os
import sys

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rich.console import Console

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.quiet import quiet
from amidmath.integrations.common.run.distill import distill
from amidmath.integrations.jax_loop.devices.processes import is_main, join, together
from amidmath.integrations.jax_loop.run.distillation import JaxLoop
from amidmath.integrations.jax_loop.settings.arguments import parse_arguments


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the run is complete, 1 when training cannot go on, 2 when something given does not
        fit, 130 when interrupted.
    """

    def work() -> None:
        join()
        with together():
            loop = JaxLoop(parse_arguments(argv))
        distill(loop, Console(quiet=not is_main()), log)

    with quiet(argv) as log:
        return exit_status(work, "checkpoints, if any, are kept")


if __name__ == "__main__":
    sys.exit(main())
