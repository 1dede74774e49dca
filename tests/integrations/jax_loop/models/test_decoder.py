"""The decoder against transformers' models with the same weights."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from tiny_families import VARIANTS, VOCABULARY, tiny_family
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.decoder_config import DecoderConfig, Rotary
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model, save_model

Pairs = Callable[[str], tuple[PreTrainedModel, LoadedModel]]
TEACHER = Path("build/embedded/teacher")
IDS = np.random.default_rng(0).integers(3, VOCABULARY, (2, 24), dtype=np.int32)
# Padding on the left, in the middle and on the right, and documents longer than the windows of 5.
SEGMENTS = np.array([[0] * 3 + [1] * 8 + [2] * 13, [4] * 7 + [0] * 2 + [1] * 9 + [7] + [0] * 5])
DOCUMENTS = [(0, 3, 11), (0, 11, 24), (1, 0, 7), (1, 9, 18), (1, 18, 19)]


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: torch.Tensor = model(input_ids=torch.tensor(np.atleast_2d(ids))).logits
    return found.float().numpy()


def cross_entropy(decoder: Decoder, ids: jax.Array) -> jax.Array:
    logs = jax.nn.log_softmax(decoder(ids[:, :-1]))
    return -jnp.take_along_axis(logs, ids[:, 1:, None], axis=-1).mean()


def config(layers: int, **changes: Any) -> DecoderConfig:
    sizes: dict[str, Any] = {
        "vocabulary": 11,
        "hidden": 8,
        "layers": layers,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 4,
        "intermediate": 16,
        "context": 32,
        "norm": "rms",
        "epsilon": 1e-6,
        "activation": "silu",
        "gated": True,
        "tied": True,
        "rotaries": (Rotary(1e4),) * layers,
        "windows": (None,) * layers,
        "query_scale": 0.5,
    }
    return DecoderConfig(**(sizes | changes))


@cache
def fresh(tied: bool) -> Decoder:
    shape = config(1, tied=tied, final_softcap=3.0)
    made: Decoder = nnx.jit(lambda: Decoder(shape, rngs=nnx.Rngs(0)))()
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, pair: Pairs) -> None:
    theirs, ours = pair(variant)
    run = nnx.jit(lambda model, segments: model(IDS, segments))
    expected = logits_of(theirs, IDS)
    found = np.asarray(run(ours.decoder, np.ones_like(IDS)))
    assert np.abs(expected).max() > 0.25
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # Documents of a row are apart from each other and from padding.
    packed = np.asarray(run(ours.decoder, SEGMENTS))
    assert np.isfinite(packed).all()
    for row, start, end in DOCUMENTS:
        alone = logits_of(theirs, IDS[row, start:end])[0]
        np.testing.assert_allclose(packed[row, start:end], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["llama", "gpt2"])
def test_positions_may_be_given(variant: str, pair: Pairs) -> None:
    theirs, ours = pair(variant)
    positions = np.array([[3, 4, 5, 9, 10, 11]] * 2)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(IDS[:, :6]),
            position_ids=torch.tensor(positions),
            attention_mask=torch.ones(2, 6),  # without it, transformers sees two documents
        ).logits.numpy()
    run = nnx.jit(lambda model: (model(IDS[:, :6], positions=positions), model(IDS[:, :6])))
    found, counted = run(ours.decoder)
    np.testing.assert_allclose(counted, logits_of(theirs, IDS[:, :6]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["llama", "gemma2"])
def test_bfloat16_is_as_close_as_in_transformers(variant: str, pair: Pairs) -> None:
    theirs, ours = pair(variant)
    exact = logits_of(theirs, IDS)
    rounded = logits_of(tiny_family(variant).to(torch.bfloat16), IDS)
    decoder: Decoder = nnx.clone(ours.decoder)
    decoder.dtype = jnp.dtype(jnp.bfloat16)
    states, found = nnx.jit(lambda model: (model.states(IDS), model(IDS)))(decoder)
    assert states.dtype == jnp.bfloat16
    assert found.dtype == jnp.float32
    error, usual = (np.abs(np.asarray(x) - exact).mean() for x in (found, rounded))
    assert 0.0 < error < 1.25 * usual


@pytest.mark.parametrize("variant", ["llama, all biases", "gemma2", "gpt2"])
def test_gradients_are_those_of_torch(variant: str, pair: Pairs, tmp_path: Path) -> None:
    theirs, ours = pair(variant)
    ids = torch.tensor(IDS)
    theirs.zero_grad()
    logits = theirs(input_ids=ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].long().flatten()).backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    theirs.zero_grad()

    # Written as if they were weights, so that they have transformers' names and shapes.
    gradients = nnx.merge(nnx.graphdef(ours.decoder), gradients_of(ours.decoder, True))
    save_model(tmp_path / "gradients", LoadedModel(gradients, ours.hf_config))
    found = load_file(tmp_path / "gradients" / "model.safetensors")
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        atol = 1e-5 * np.abs(gradient).max() + 1e-8
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=atol)


def test_remat_gives_the_same_gradients(pair: Pairs) -> None:
    decoder = pair("gpt2")[1].decoder
    found = (jax.tree.leaves(gradients_of(decoder, remat)) for remat in (False, True))
    for plain, again in zip(*found, strict=True):
        atol = 1e-6 * float(jnp.abs(plain).max()) + 1e-8
        np.testing.assert_allclose(again, plain, rtol=0, atol=atol)


@cache
def gradients_of(decoder: Decoder, remat: bool) -> Any:
    return nnx.jit(nnx.grad(cross_entropy))(_with_remat(decoder, remat), jnp.asarray(IDS))


def _with_remat(decoder: Decoder, remat: bool) -> Decoder:
    copy: Decoder = nnx.clone(decoder)
    copy.remat = remat
    return copy


def test_remat_keeps_less(pair: Pairs) -> None:
    _, ours = pair("llama")

    def kept(remat: bool) -> int:
        graph, state = nnx.split(_with_remat(ours.decoder, remat))
        pull = jax.eval_shape(
            lambda s: jax.vjp(lambda s: nnx.merge(graph, s).states(IDS), s)[1], state
        )
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(pull))

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.parametrize("variant", ["qwen3, biases, windows", "gpt2"])
def test_a_cache_gives_the_same_states(variant: str, pair: Pairs) -> None:
    decoder = pair(variant)[1].decoder
    marks = np.ones_like(IDS)
    marks[0, :4] = 0  # padding on the left
    expected = nnx.jit(lambda model: model.states(IDS, marks))(decoder)
    cache = decoder.empty_cache(2, 30)
    extend = nnx.jit(lambda model, *rest: model.extend(*rest))
    parts = []
    for start, end in ((0, 21), (21, 22), (22, 23), (23, 24)):
        part, cache = extend(decoder, IDS[:, start:end], marks[:, start:end], cache)
        parts.append(part)
    found = np.concatenate(parts, axis=1)
    for row, start in ((0, 4), (1, 0)):
        np.testing.assert_allclose(found[row, start:], expected[row, start:], rtol=0, atol=2e-5)


def test_a_program_is_as_long_for_many_layers_as_for_few() -> None:
    def program(layers: int) -> int:
        model = nnx.eval_shape(lambda: Decoder(config(layers), rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        jaxpr = jax.make_jaxpr(lambda s: nnx.merge(graph, s).states(IDS[:, :5] % 11))(state)
        return str(jaxpr).count("\n")

    assert program(2) == program(40)


def test_parameters_name_their_axes_and_abstract_ones_hold_nothing() -> None:
    shape = config(2, qkv_bias=True, qk_norm=True, tied=False, rotaries=())
    abstract = nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0)))
    axes = {}
    for path, parameter in nnx.to_flat_state(nnx.state(abstract)):
        assert isinstance(parameter.get_value(), jax.ShapeDtypeStruct)
        assert len(parameter.axes) == len(parameter.shape)
        axes[".".join(path)] = parameter.axes
    assert axes["layers.query.weight"] == ("layer", "embed", "heads", None)
    assert axes["layers.key.weight"] == ("layer", "embed", "kv", None)
    assert axes["layers.key.bias"] == ("layer", "kv")
    assert axes["layers.output.weight"] == ("layer", "heads", None, "embed")
    assert axes["layers.up.weight"] == ("layer", "embed", "mlp")
    assert axes["layers.down.weight"] == ("layer", "mlp", "embed")
    assert axes["layers.query_norm.weight"] == ("layer", None)
    assert axes["embedding"] == axes["output_head"] == ("vocab", "embed")
    assert axes["position_embedding"] == (None, "embed")
    assert axes["norm.weight"] == ("embed",)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head(tied: bool) -> None:
    decoder = fresh(tied)
    head = decoder.head()
    source = decoder.embedding if tied else decoder.output_head
    assert head.weight is source[...]  # not a copy
    assert head.softcap == 3.0
    run = nnx.jit(lambda model, ids: (model.states(ids), model(ids)))
    states, logits = run(decoder, IDS[:, :5] % 11)
    assert float(jnp.abs(logits).max()) < 3.0
    expected = 3.0 * np.tanh(np.asarray(states) @ np.asarray(source[...]).T / 3.0)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_a_token_that_there_is_not_gives_nan_not_another_token() -> None:
    states = np.asarray(nnx.jit(Decoder.states)(fresh(True), np.array([[3, 4], [3, 11]])))
    assert np.isfinite(states[0]).all()
    assert np.isnan(states[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "kv_heads must divide heads = 2, got 3"),
        ({"windows": (None,)}, r"windows must have one entry a layer \(2\), got 1"),
        ({"rotaries": (Rotary(1e4),)}, r"rotaries must be empty or have one .* \(2\), got 1"),
    ],
)
def test_shapes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(2, **changes)


@pytest.mark.slow
def test_smollm2() -> None:
    theirs = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    ours = load_model("--model", str(TEACHER))
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    text = "The assistant stands between the teacher and the student. " * 20
    ids = np.array([tokenizer(text).input_ids[:200]], np.int32)
    expected = logits_of(theirs, ids)
    found = np.asarray(ours.decoder(ids))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"SmolLM2: {error:.1e} of the largest logit")
    assert error < 1e-4
