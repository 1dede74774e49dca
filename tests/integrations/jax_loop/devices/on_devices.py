"""The process of test_mesh.py, which has eight devices: trains on meshes, and says what came out.

Usage: on_devices.py folder. The folder has jobs.json, and gets done.json.
"""

import json
import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np

from amidmath.integrations.jax_loop.run.loading import prepare
from amidmath.integrations.jax_loop.run.memory import compiled_step
from amidmath.integrations.jax_loop.settings.arguments import Arguments, JaxScriptArguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig


def run(job):
    """Losses, gradient norms, held-out figures and weights of a run."""
    config = JaxConfig(**job["config"])
    script = JaxScriptArguments(dataset_name=job["data"], eval_dataset_name=job["data"])
    folder = Path(config.output_dir)
    arguments = Arguments(job["student"], job["teacher"], folder, script, config)
    prepared = prepare(arguments, print, jax.devices()[: job["devices"]])
    trainer = prepared.trainer
    lines, log = [], trainer.log

    def watch(logs):
        lines.append(dict(logs))
        log(logs)

    trainer.log = watch
    trainer.train()
    models = {"student": trainer.student}
    quality = prepared.judge(models, prepared.held_out(None))
    parameters = jax.tree.leaves(trainer.state.trained)
    return {
        "lines": lines,
        "quality": {name: vars(of) for name, of in quality.items()},
        "sums": [float(np.abs(np.asarray(a, np.float64)).sum()) for a in parameters],
        "parts": sorted({len(a.sharding.device_set) for a in parameters}),
        "bytes": sum(a.addressable_shards[0].data.nbytes for a in parameters),
        "programs": trainer.steps.train._cache_size(),
        "look-ups": look_ups(trainer) if job["inspected"] else None,
    }


def look_ups(trainer):
    """How devices exchange embeddings where the compiled step looks them up."""
    text = compiled_step(trainer).as_text()
    return sorted(set(re.findall(r"= \(?f32.* (all-[a-z]+)\(.*jit\(_take\)\)/gather", text)))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    jobs = json.loads((folder / "jobs.json").read_text())
    done = {}
    for name, job in jobs.items():
        done[name] = run(job)
    (folder / "done.json").write_text(json.dumps(done))
