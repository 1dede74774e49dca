"""Folders in the Hugging Face format, read and written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny import byte_tokenizer
from tiny_families import VARIANTS, tiny_family
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model, save_model

Pairs = Callable[[str], tuple[PreTrainedModel, LoadedModel]]
WEIGHTS = "model.safetensors"
IDS = torch.arange(3, 20)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_family("llama").save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the weights of a folder."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def same(found: LoadedModel, expected: LoadedModel) -> bool:
    ours, theirs = (jax.tree.leaves(nnx.state(loaded.decoder)) for loaded in (found, expected))
    return all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant: str, pair: Pairs, tmp_path: Path) -> None:
    theirs, ours = pair(variant)
    save_model(tmp_path / "again", ours)
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert again.dtype == torch.float32
    expected = theirs.state_dict()
    found = again.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, theirs(input_ids=IDS).logits)
    assert same(load_model("--model", str(tmp_path / "again")), ours)
    content = json.loads((tmp_path / "again" / "config.json").read_text())
    assert content["dtype"] == "float32"
    assert content["architectures"] == [type(theirs).__name__]


def test_several_files(pair: Pairs, tmp_path: Path) -> None:
    theirs, ours = pair("gpt2, untied")
    save_model(tmp_path / "cut", ours, shard_bytes=40_000)
    index = json.loads((tmp_path / "cut" / f"{WEIGHTS}.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert not (tmp_path / "cut" / WEIGHTS).exists()
    assert set(index["weight_map"]) == set(theirs.state_dict())
    sizes = [
        value.nbytes for file in files for value in load_file(tmp_path / "cut" / file).values()
    ]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert same(load_model("--model", str(tmp_path / "cut")), ours)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in theirs.state_dict().items())
    (tmp_path / "cut" / min(files)).unlink()
    with pytest.raises(InputError, match=r"--model: .* holds no model that can be loaded"):
        load_model("--model", str(tmp_path / "cut"))


def test_files_that_transformers_cuts(tmp_path: Path, pair: Pairs) -> None:
    theirs, ours = pair("gemma2")
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same(load_model("--model", str(tmp_path)), ours)


def test_what_the_model_had_besides_is_kept(folder: Path, tmp_path: Path) -> None:
    content = {"eos_token_id": [1, 7], "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(content))
    loaded = load_model("--model", str(folder))
    assert loaded.generation_config == content
    save_model(tmp_path / "again", loaded, byte_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == content
    (folder / "generation_config.json").unlink()
    loaded = load_model("--model", str(folder))
    assert loaded.generation_config is None
    save_model(tmp_path / "again", loaded)
    assert not (tmp_path / "again" / "generation_config.json").exists()


def test_dtypes(tmp_path: Path) -> None:
    model = tiny_family("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    wide = load_model("--model", str(tmp_path / "model"))
    kept = load_model(
        "--model", str(tmp_path / "model"), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    for loaded, dtype in ((wide, jnp.float32), (kept, jnp.bfloat16)):
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(nnx.state(loaded.decoder)))
        save_model(tmp_path / "again", loaded)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
        assert again.dtype == (torch.float32 if dtype == jnp.float32 else torch.bfloat16)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name].to(torch.bfloat16), value)
    assert kept.decoder.dtype == jnp.bfloat16
    assert kept.decoder.head().weight.dtype == jnp.bfloat16


def test_weights_go_where_the_mesh_wants_them(pair: Pairs, folder: Path) -> None:
    mesh = jax.make_mesh((1,), ("all",))
    asked = {}

    def sharding_of(axes: Any, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
        asked[axes] = shape
        if "vocab" not in axes:
            return None
        return jax.NamedSharding(mesh, jax.P("all", None))

    loaded = load_model("--model", str(folder), sharding_of=sharding_of)
    assert same(loaded, pair("llama")[1])
    assert asked["layer", "embed", "heads", None] == (3, 32, 4, 8)
    assert loaded.decoder.embedding[...].sharding == jax.NamedSharding(mesh, jax.P("all", None))
    assert isinstance(loaded.decoder.norm.weight[...].sharding, jax.sharding.SingleDeviceSharding)


def test_gpt2_as_it_lies_on_the_hub(tmp_path: Path, pair: Pairs) -> None:
    theirs, ours = pair("gpt2")
    theirs.save_pretrained(tmp_path)

    def older(weights: dict[str, Any]) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        for layer in range(3):
            weights[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))

    rewrite(tmp_path, older)
    assert "h.0.attn.c_attn.weight" in load_file(tmp_path / WEIGHTS)
    assert same(load_model("--model", str(tmp_path)), ours)


def test_a_tied_head_that_is_in_the_file_too(tmp_path: Path, pair: Pairs) -> None:
    theirs, ours = pair("gpt2")
    theirs.save_pretrained(tmp_path)
    embedding = theirs.state_dict()["transformer.wte.weight"].numpy()
    rewrite(tmp_path, lambda weights: weights.update({"lm_head.weight": embedding}))
    assert same(load_model("--model", str(tmp_path)), ours)
    rewrite(tmp_path, lambda weights: weights.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(InputError, match=r"ties the head to the embedding .* differ"):
        load_model("--model", str(tmp_path))


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(DOWN), f"lacks 1 of the model's 30 weights, {DOWN} for one"),
        (
            lambda w: w.pop("lm_head.weight"),
            "lacks 1 of the model's 30 weights, lm_head.weight for one",
        ),
        (lambda w: w.update({"model.x": w[DOWN]}), "1 weights .* no place for, model.x for one"),
        (
            lambda w: w.update({DOWN: w[DOWN].T.copy()}),
            r"down_proj.weight has shape \(48, 32\); by its configuration it would be \(32, 48\)",
        ),
        (lambda w: w.update({DOWN: w[DOWN].astype(np.int8)}), "is of type I8; supported are F64"),
    ],
)
def test_weights_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(InputError, match=rf"--model: .* holds no model .*{message}"):
        load_model("--model", str(folder))


def write_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def turned_into_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (turned_into_pickle, "it has no model.safetensors .*pytorch_model.bin is a pickle"),
        (lambda f: (f / WEIGHTS).unlink(), "it has no model.safetensors and no model.safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes(b"no weights"), "header"),
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: write_config(f, "{"), "its config.json is no JSON"),
        (lambda f: write_config(f, "[]"), "must hold an object, not a list"),
        (lambda f: write_config(f, "{}"), "model_type None is not supported; supported are llama"),
        (lambda f: write_config(f, '{"model_type": "bloom"}'), "model_type 'bloom' is not"),
        (
            lambda f: write_config(f, '{"model_type": "llama", "hidden_size": "wide"}'),
            "its config.json does not hold: .*hidden_size",
        ),
        (
            lambda f: write_config(f, '{"model_type": "llama", "num_key_value_heads": 5}'),
            "kv_heads must divide heads = 32, got 5",
        ),
    ],
)
def test_folders_that_hold_no_model(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(InputError, match=rf"--model: .* holds no model .*{message}"):
        load_model("--model", str(folder))


def test_a_name_that_is_nowhere() -> None:
    message = "--teacher: 'no-such/model' is neither a folder here nor a model .* from the hub"
    with pytest.raises(InputError, match=message):
        load_model("--teacher", "no-such/model")


def test_a_model_that_could_not_be_saved_leaves_the_earlier_one(
    pair: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = pair("llama")[1]
    save_model(tmp_path / "model", ours)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(type(ours.hf_config), "save_pretrained", fails)
    with pytest.raises(RuntimeError, match="stopped"):
        save_model(tmp_path / "model", ours)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_no_torch_is_needed(folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
from pathlib import Path
from amidmath.integrations.jax_loop.models import generation as sampling
from amidmath.integrations.jax_loop.models.model_files import load_model, save_model
save_model(Path({str(tmp_path / "again")!r}), load_model("--model", {str(folder)!r}))
assert sys.modules["torch"] is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, expected = (load_file(path / WEIGHTS) for path in (tmp_path / "again", folder))
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
