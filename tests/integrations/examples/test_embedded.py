"""The embedded default on the real SmolLM2 teacher: `make test-slow` fetches it and runs this."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from amidmath.integrations.torch_distill import main

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def test_the_student_comes_closer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "build" / "embedded" / "ready").exists():
        pytest.fail("build/embedded is missing: run `make embedded` first")
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    command = ["--config", "integrations/configs/smollm2.yaml", "--output_dir", str(run)]
    assert main([*command, "--max_steps", "12", "--max_eval_samples", "8"]) == 0
    results = json.loads((run / "results.json").read_text())
    teacher, before, after = results.values()
    assert teacher["perplexity"] < 60
    assert after["kl"] < 0.6 * before["kl"]
    assert after["perplexity"] < 0.01 * before["perplexity"]
    assert after["agreement"] > before["agreement"]
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    assert student.config.num_hidden_layers == 12
