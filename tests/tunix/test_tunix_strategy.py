"""Tunix's own trainer with our strategy, on tiny models of its own, held against mpmath."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import definitions
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

pytest.importorskip("tunix", reason="needs google-tunix: make test-tunix")

from flax import nnx
from tunix.distillation import DistillationTrainer, TrainingConfig, TrainingInput
from tunix.distillation.strategies import LogitStrategy
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

import amidmath as am
from amidmath.integrations.plugins.tunix_strategy import AMiDStrategy, next_token_labels

VOCABULARY = 23
PAGE = Path(__file__).parents[2] / "docs" / "jax-plugins.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
ROWS = (9, 5, 12)  # how many tokens of 12 are no padding


@functools.cache
def fresh(layers, seed, vocabulary=VOCABULARY):
    config = ModelConfig(
        num_layers=layers, vocab_size=vocabulary, embed_dim=16, hidden_dim=32, num_heads=2,
        head_dim=8, num_kv_heads=1, rope_theta=10_000, norm_eps=1e-6, use_tied_embedding=True,
    )  # fmt: skip
    made = Qwen2(config, rngs=nnx.Rngs(params=seed))
    state = jax.tree.map(lambda a: 8.0 * a if a.ndim > 1 else a, nnx.state(made, nnx.Param))
    nnx.update(made, state)  # its own start is too close to uniform to distil anything
    return made


def model(layers, seed):
    return nnx.clone(fresh(layers, seed))


def batch(padding=0):
    tokens = np.random.default_rng(3).integers(1, VOCABULARY, size=(3, 12)).astype(np.int32)
    mask = np.arange(12) < np.array(ROWS)[:, None]
    return TrainingInput(input_tokens=np.where(mask, tokens, padding), input_mask=mask)


def run(model, input_tokens, input_mask, **options):
    positions = build_positions_from_mask(input_mask)
    return model(input_tokens, positions, None, make_causal_attn_mask(input_mask), **options)


def logits(model, input_tokens, input_mask):
    return run(model, input_tokens, input_mask)[0]


def states(model, input_tokens, input_mask):
    run(model, input_tokens, input_mask, output_hidden_states=True)
    (hidden,) = nnx.pop(model, nnx.Intermediate)["all_hidden_states"].get_value()
    return am.Hidden(hidden, model.embedder.input_embedding.get_value())


def train(strategy, steps, data=None, trainer=DistillationTrainer, student_seed=2):
    made = trainer(
        model(1, student_seed),
        model(2, 1),
        strategy,
        optax.adam(1e-2),
        TrainingConfig(eval_every_n_steps=steps, max_steps=steps),
    )
    made.train([data or batch()] * steps)
    return made, made.metrics_logger.get_metric_history("", "loss", "train")


def exact_rows(array):
    return [[mpmath.mpf(float(v)) for v in row] for row in np.asarray(array, np.float64)]


def log_probabilities(data):
    """Of teacher and student before training, and the labels, at the positions that count."""
    counts = np.arange(11) < np.array(ROWS)[:, None] - 1
    labels = data.input_tokens[:, 1:][counts]
    given = (jnp.asarray(data.input_tokens), jnp.asarray(data.input_mask))
    sides = (nnx.jit(logits)(side, *given) for side in (model(2, 1), model(1, 2)))
    return (
        *([definitions.log_softmax(row) for row in exact_rows(a[:, :-1][counts])] for a in sides),
        labels,
    )


def exact_mean(function, *columns):
    return float(mpmath.fsum(map(function, *columns)) / len(columns[0]))


def mixture_kl(lam):
    def of(log_p, log_q):
        p, q = ([mpmath.exp(v) for v in row] for row in (log_p, log_q))
        r = [lam * a + (1 - lam) * b for a, b in zip(p, q, strict=True)]
        return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, r, strict=True))

    return of


class Recorded(DistillationTrainer):
    """Keeps what strategies say of every step, which Tunix's own trainer drops."""

    def _post_process_train_step(self, aux):
        self.said = [*getattr(self, "said", []), jax.device_get(aux)]


def test_training_minimises_the_loss_over_the_positions_that_count():
    data = batch()
    strategy = AMiDStrategy(logits, logits, next_token_labels, lam=0.2, label_weight=0.25)
    trainer, losses = train(strategy, 30, data, Recorded)
    log_p, log_q, labels = log_probabilities(data)
    soft = exact_mean(mixture_kl(mpmath.mpf("0.2")), log_p, log_q)
    hard = exact_mean(lambda row, label: -row[label], log_q, labels)
    assert losses[0] == pytest.approx(soft + 0.25 * hard, rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    overlap = exact_mean(lambda p, q: mpmath.fsum(map(mpmath.exp, map(min, p, q))), log_p, log_q)
    said = {name.removeprefix("distill/"): value for name, value in trainer.said[0].items()}
    assert said == pytest.approx(
        {
            "soft_loss": soft,
            "hard_loss": hard,
            "kl_div": exact_mean(mixture_kl(0), log_p, log_q),
            "teacher_loss": exact_mean(lambda row, label: -row[label], log_p, labels),
            "overlap": overlap,
        },
        rel=1e-5,
    )
    assert trainer.said[-1]["distill/kl_div"] < said["kl_div"]


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_hidden_states_train_as_logits_do(label_weight):
    whole, chunked = (
        train(AMiDStrategy(forward, forward, next_token_labels, "gkd", label_weight, beta=0.3), 5)[
            1
        ]
        for forward in (logits, states)
    )
    np.testing.assert_allclose(chunked, whole, rtol=1e-5)


def test_from_hidden_states_logits_are_never_whole():
    vocabulary, rows = 50_021, 2 * 300
    tokens = jnp.ones((2, 300), jnp.int32)
    inputs = {"input_tokens": tokens, "input_mask": tokens > 0}

    def shapes(forward):
        strategy = AMiDStrategy(forward, forward, next_token_labels, "kl", 0.5)
        teacher = strategy.get_teacher_outputs(fresh(2, 1, vocabulary), inputs)
        step = nnx.jit(nnx.value_and_grad(strategy.get_train_loss, has_aux=True))
        compiled = step.lower(fresh(1, 2, vocabulary), teacher, inputs).compile()
        return re.findall(rf"\[([\d,]*){vocabulary}\]", compiled.as_text())

    positions = {
        forward: max(np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes(forward))
        for forward in (logits, states)
    }
    assert positions[logits] == rows
    assert positions[states] < rows / 2


def test_padding_has_no_influence():
    strategy = AMiDStrategy(logits, logits, next_token_labels, "reverse_kl", 0.5)
    one, another = (train(strategy, 4, batch(padding))[1] for padding in (0, 7))
    np.testing.assert_array_equal(one, another)


def outputs(shape=(2, 3, 5)):
    rng = np.random.default_rng(4)
    return (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))


def plain(loss="amid", label_weight=0.0, **parameters):
    return AMiDStrategy(lambda m: m, lambda m: m, lambda m: m, loss, label_weight, **parameters)


def of(strategy, student, teacher, labels):
    """Value and metrics, and the gradient by the student."""
    return jax.jit(jax.value_and_grad(strategy.compute_loss, has_aux=True))(
        student, teacher, labels
    )


def as_floats(metrics):
    return {name: float(value) for name, value in metrics.items()}


LABELS = jnp.array([[1, -100, 4], [-100, -100, 0]])
COUNT = np.asarray(LABELS) != -100


@pytest.mark.parametrize("garbage", [np.nan, 3.0])
@pytest.mark.parametrize("one_hot", [False, True])
def test_a_position_without_a_label_has_no_influence(garbage, one_hot):
    student, teacher = outputs()
    labels = jax.nn.one_hot(LABELS, 5) if one_hot else LABELS
    strategy = plain("kl", 0.5)

    spoilt = [jnp.where(COUNT[..., None], a, garbage) for a in (student, teacher)]
    (value, metrics), grad = of(strategy, *spoilt, labels)
    # What is left when those positions are taken away, where all others count.
    kept = [jnp.asarray(np.asarray(a)[COUNT]) for a in (student, teacher)]
    (wanted, others), wanted_grad = of(strategy, *kept, LABELS[COUNT])
    assert value == pytest.approx(float(wanted), rel=1e-6)
    assert as_floats(metrics) == pytest.approx(as_floats(others), rel=1e-6)
    np.testing.assert_allclose(np.asarray(grad)[COUNT], wanted_grad, rtol=1e-5, atol=1e-7)
    assert not np.any(np.asarray(grad)[~COUNT])
    evaluated, nothing = strategy.compute_eval_loss(spoilt[0], labels)
    assert evaluated == pytest.approx(float(strategy.compute_eval_loss(kept[0], LABELS[COUNT])[0]))
    assert nothing == {}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_where_all_positions_count_it_is_tunix_own(temperature):
    student, teacher = outputs()
    labels = jax.nn.one_hot(jnp.array([[1, 2, 4], [3, 3, 0]]), 5)
    theirs = LogitStrategy(
        lambda m: m, lambda m: m, lambda m: m, temperature=temperature, alpha=0.7
    )
    ours = plain(0.7 * temperature**2 * am.methods.kl(temperature), 0.3)
    (value, metrics), grad = of(ours, student, teacher, labels)
    (wanted, their_metrics), wanted_grad = of(theirs, student, teacher, labels)
    assert value == pytest.approx(float(wanted), rel=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-5, atol=1e-7)
    assert set(metrics) == set(their_metrics) | {"distill/overlap"}
    for name in ("distill/hard_loss", "distill/teacher_loss"):
        assert metrics[name] == pytest.approx(float(their_metrics[name]), rel=1e-6)
    evaluated, _ = ours.compute_eval_loss(student, labels)
    assert evaluated == pytest.approx(float(theirs.compute_eval_loss(student, labels)[0]), rel=1e-6)


@pytest.mark.parametrize("head", [{}, {"softcap": 2.0, "scale": 0.5}])
def test_the_cross_entropy_of_hidden_states(head):
    hidden, _ = outputs((2, 3, 4))
    weight = jnp.asarray(np.random.default_rng(5).normal(size=(7, 4)), jnp.float32)
    bias = jnp.arange(7.0) / 7
    given = am.Hidden(hidden, am.Head(weight, bias, **head))
    value, _ = plain().compute_eval_loss(given, LABELS)
    raw = (np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T) + np.asarray(bias)
    if head:
        raw = 2.0 * np.tanh(0.5 * raw / 2.0)
    log_q = [definitions.log_softmax(row) for row in exact_rows(raw[COUNT])]
    wanted = exact_mean(lambda row, label: -row[label], log_q, np.asarray(LABELS)[COUNT])
    assert value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["logits", "hidden"])
def test_nothing_that_counts_is_a_loss_of_zero(kind):
    student, teacher = outputs()
    if kind == "hidden":
        student, teacher = (am.Hidden(a, jnp.ones((6, 5))) for a in (student, teacher))
    labels = jnp.full((2, 3), -100)
    strategy = plain(label_weight=1.0)
    (value, metrics), grad = of(strategy, student, teacher, labels)
    assert value == 0.0
    assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(grad))
    assert set(as_floats(metrics).values()) == {0.0}
    assert strategy.compute_eval_loss(student, labels)[0] == 0.0


def test_labels_of_the_next_token():
    labels = next_token_labels(
        jnp.array([[5, 6, 7, 8], [1, 2, 3, 4]]), jnp.array([[1, 1, 1, 0], [0, 0, 1, 1]]), other=None
    )
    assert labels.tolist() == [[6, 7, -100, -100], [-100, 3, 4, -100]]


def test_what_does_not_fit():
    student, teacher = outputs()
    hidden = am.Hidden(student, jnp.ones((6, 5)))
    with pytest.raises(ValueError, match=r"labels_fn must give integers .*\(2, 3\).*\(2, 3, 5\)"):
        plain().compute_loss(student, teacher, LABELS[:, :2])
    with pytest.raises(ValueError, match=r"labels_fn must give integers .* dtype float32"):
        plain().compute_eval_loss(hidden, jax.nn.one_hot(LABELS, 6))
    with pytest.raises(ValueError, match=r"label_weight must not be negative, got -1"):
        plain(label_weight=-1)
    with pytest.raises(ValueError, match=r"loss must be one of .*got 'unknown'"):
        plain("unknown")


@pytest.mark.parametrize(
    "example",
    [
        e
        for e in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        if "tunix" in e
    ],
)
def test_the_page_s_examples(example, capsys):
    exec(compile(example, PAGE.name, "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"distill/kl_div \[.+ .+ .+\]", printed), printed
