"""--vocab common_only: both distributions are those of the common tokens; and infinite losses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import save, tiny_model, write_jsonl

import amidmath as am
from amidmath.integrations import cache_teacher, jax_cache_teacher, jax_distill, torch_distill
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.settings import LossSettings
from amidmath.integrations.common.recipe.supports import check_finite
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.run import run_folder
from amidmath.integrations.jax_loop.loss.compare import Whole
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.objective import compare
from amidmath.integrations.torch_loop.models.states import States

ROWS = [{"prompt": f"{name}: ", "completion": "an answer"} for name in "abcdefgh"]
SCRIPTS = {"torch": torch_distill.main, "jax": jax_distill.main}
CACHES = {"torch": cache_teacher.main, "jax": jax_cache_teacher.main}
V, COMMON = 11, 8

# Method, its settings, and whether it is infinite where the student or the teacher has more tokens.
INFINITE: list[tuple[str, dict[str, Any], bool, bool]] = [
    ("kl", {}, False, True),
    ("reverse_kl", {}, True, False),
    ("jeffreys", {}, True, True),
    ("akl", {}, True, True),
    ("wsd", {}, True, True),
    ("tvd", {}, False, False),
    ("gkd", {}, False, False),
    ("taid", {}, False, False),
    ("amid", {"alpha": -1.0}, False, False),
    ("amid", {"alpha": 1.0}, False, True),
    ("amid", {"alpha": 1.0, "order": "qr"}, True, False),
    ("amid", {"schedule": ["alpha=linear:-5:1"]}, False, True),
    ("amid", {"schedule": ["alpha=overlap_token:-5:1"]}, False, False),
]


@pytest.mark.parametrize(("method", "settings", "student_more", "teacher_more"), INFINITE)
def test_a_loss_that_is_infinite_by_construction_is_refused(
    method: str, settings: dict[str, Any], student_more: bool, teacher_more: bool
) -> None:
    recipe = LossSettings(method=method, **settings).recipe()
    for infinite, sizes in ((student_more, (V, COMMON)), (teacher_more, (COMMON, V))):
        for vocab in ("common", "common_only"):
            if infinite and vocab == "common":
                with pytest.raises(InputError, match=r"has 3 tokens.*--vocab common_only"):
                    check_finite(recipe, vocab, *sizes)
            else:
                check_finite(recipe, vocab, *sizes)


def renormalised(hidden: Any, head: am.Head) -> np.ndarray[Any, Any]:
    """Logits of the common tokens in float64, by the textbook."""
    weight, bias = (np.asarray(a, np.float64) for a in (head.weight, head.bias))
    logits = np.asarray(hidden, np.float64) @ weight.T + bias
    if head.low_rank is not None:
        a, b, factor = head.low_rank
        logits += (
            factor
            * (np.asarray(hidden, np.float64) @ np.asarray(a, np.float64).T)
            @ (np.asarray(b, np.float64).T)
        )
    return logits[..., :COMMON]


def sides(sizes: tuple[int, int]) -> Iterator[tuple[Any, am.Head]]:
    torch.manual_seed(0)
    for size in sizes:
        low_rank = (torch.randn(2, 4), torch.randn(size, 2), 0.5)
        head = am.Head(torch.randn(size, 4), bias=torch.randn(size), low_rank=low_rank)
        yield torch.randn(1, 6, 4), head


@pytest.mark.parametrize("sizes", [(COMMON, V), (V, COMMON)])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_loss_is_of_the_renormalised_distributions(
    framework: str, sizes: tuple[int, int]
) -> None:
    (ours, head), (theirs, teacher_head) = sides(sizes)
    if framework == "jax":  # whose heads are merged
        head, teacher_head = (am.Head(h.weight, bias=h.bias) for h in (head, teacher_head))
    q, p = renormalised(ours, head), renormalised(theirs, teacher_head)
    labels = torch.tensor([[0, 3, COMMON - 1, 9 if sizes[0] == V else NO_LABEL, 2, 1]])
    loss = am.AMiD(am.KL(), order="pr", lam=0.0)
    targets = np.append(labels[0, 1:].numpy(), NO_LABEL)
    mask = targets != NO_LABEL
    learned = mask & (targets < COMMON)
    log_q = q[0] - np.log(np.exp(q[0]).sum(-1, keepdims=True))
    expected = np.asarray(loss(q, p, reduction="none"))[0][mask].sum()
    expected += 0.5 * -log_q[np.arange(6)[learned], targets[learned]].sum()
    if framework == "torch":
        batch = Batch(labels, None, "common_only", 0.5, tokens=COMMON)
        states, reference = (
            States(am.Hidden(ours, head), head),
            States(am.Hidden(theirs, teacher_head), teacher_head),
        )
        found = float(compare(loss, states, reference, batch.mask, batch, "sum"))
    else:
        states, reference = (
            am.Hidden(
                jnp.asarray(h.numpy()),
                am.Head(jnp.asarray(w.weight.numpy()), bias=jnp.asarray(w.bias.numpy())),
            )
            for h, w in ((ours, head), (theirs, teacher_head))
        )
        found = float(
            Whole("common_only", COMMON)(
                loss,
                states,
                reference,
                jnp.asarray(mask)[None],
                labels=jnp.asarray(targets)[None],
                label_weight=0.5,
            )
        )
    assert found == pytest.approx(expected, rel=1e-5)


def test_all_tokens_are_the_head_itself() -> None:
    head = am.Head(np.zeros((5, 3)))
    assert head.first(None) is head
    assert head.first(5) is head


@pytest.fixture
def padded(student_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """A run whose teacher has more logits than the student."""
    return {
        "model_name_or_path": student_dir,
        "teacher_model_name_or_path": save(tiny_model(1, 3, vocab_size=448), tmp_path / "teacher"),
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", ROWS),
        "max_length": 48,
    }


def run(main: Callable[[list[str]], int], arguments: dict[str, Any], **more: Any) -> int:
    return main(
        [w for name, value in (arguments | more).items() for w in (f"--{name}", str(value))]
    )


@pytest.mark.parametrize("framework", SCRIPTS)
def test_runs_refuse_an_infinite_loss_and_log_a_finite_one(
    framework: str, padded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"method": "kl", "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    folder = tmp_path / "run"
    settings = padded | training | {"output_dir": folder, "disable_tqdm": "true"}
    assert run(SCRIPTS[framework], settings, vocab="common") == 2
    assert "--vocab common_only" in capsys.readouterr().err
    assert not folder.exists()
    assert run(SCRIPTS[framework], settings, vocab="common_only") == 0
    losses = [line["loss"] for line in run_folder.read_metrics(folder) if "loss" in line]
    assert len(losses) == 2
    assert all(0.0 < loss < 10.0 for loss in losses)
    figures = run_folder.read_figures(folder / run_folder.RESULTS)
    assert figures is not None
    assert 0.0 < figures["student after"]["kl"] < 10.0
    assert "the others left out" in capsys.readouterr().out


@pytest.mark.parametrize("framework", SCRIPTS)
def test_a_cache_of_the_common_tokens_is_their_teacher(
    framework: str, padded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, log = tmp_path / "cache", {}
    whole = {"output_dir": cache, "vocab": "common_only", "k": 384, "log_probs_dtype": "float32"}
    assert run(CACHES[framework], padded | whole) == 0
    training = {
        "method": "kl",
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": "true",
        "train_sampling_strategy": "sequential",
    }
    of_model = padded | training
    of_cache = {k: v for k, v in of_model.items() if not k.startswith("teacher")}
    of_cache["teacher_cache"] = cache
    refused = tmp_path / "refused"
    for vocab in ("strict", "common"):
        assert run(SCRIPTS[framework], of_cache, output_dir=refused, vocab=vocab) == 2
        assert "--vocab common_only" in capsys.readouterr().err
    for name, arguments in (("model", of_model), ("cache", of_cache)):
        folder = tmp_path / f"from {name}"
        assert run(SCRIPTS[framework], arguments, output_dir=folder, vocab="common_only") == 0
        log[name] = next(x["loss"] for x in run_folder.read_metrics(folder) if "loss" in x)
    assert log["cache"] == pytest.approx(log["model"], rel=1e-4)
