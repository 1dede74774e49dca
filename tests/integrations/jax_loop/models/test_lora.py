"""LoRA students: PEFT's numbers, PEFT's files, and what trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from datasets import Dataset
from flax import nnx
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from tiny import byte_tokenizer, words, write_jsonl
from tiny_families import tiny_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from amidmath.integrations import jax_distill
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.devices.mesh import AXES, place
from amidmath.integrations.jax_loop.models.adapter_files import CONFIG, save_adapter
from amidmath.integrations.jax_loop.models.families import family
from amidmath.integrations.jax_loop.models.lora import LoraSettings, adapted, attach
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model
from amidmath.integrations.jax_loop.run.loading import prepare
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

IDS = np.arange(24).reshape(2, 12) + 5
ROWS = [
    {"prompt": f"{name}: ", "completion": f"an answer of {n} words"}
    for n, name in enumerate("abcdefghijklmnop")
]


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("llama", LoraSettings(True, lora_r=3, lora_target_modules=["all-linear"])),
        ("gpt2", LoraSettings(True, lora_r=4, lora_target_modules=["c_attn", "c_proj"])),
        ("gemma2", LoraSettings(True, lora_r=2, lora_alpha=5.0, use_rslora=True)),
    ],
)
def test_peft_reads_what_is_written_and_computes_the_same(
    variant: str, settings: LoraSettings, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    tiny_family(variant).save_pretrained(base)
    loaded = load_model("--model", str(base))
    plain = np.asarray(loaded.decoder(jnp.asarray(IDS)))
    kind = loaded.hf_config.model_type
    tensors = adapted(family(kind), settings.lora_target_modules)
    attach(loaded.decoder, tensors, settings.lora_r, settings.lora_scale, seed=3)
    np.testing.assert_array_equal(loaded.decoder(jnp.asarray(IDS)), plain)  # it adds nothing yet

    graph, adapter, rest = nnx.split(loaded.decoder, nnx.LoRAParam, ...)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    adapter = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(next(keys), a.shape), adapter)
    decoder = nnx.merge(graph, adapter, rest)
    found = np.asarray(decoder(jnp.asarray(IDS)))
    assert np.abs(found - plain).max() > 0.1
    folder = tmp_path / "adapter"
    save_adapter(folder, decoder, kind, str(base), "main", settings, byte_tokenizer())
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    np.testing.assert_allclose(found, logits(theirs), rtol=0, atol=1e-5)
    # The adapter's folder is its base with the adapter in its weights.
    merged = load_model("--model", str(folder)).decoder
    np.testing.assert_allclose(merged(jnp.asarray(IDS)), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["qwen3", "gpt2"])
def test_an_adapter_of_peft_is_read(variant: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_family(variant).save_pretrained(base)
    config = LoraConfig(
        r=3,
        target_modules="all-linear",
        init_lora_weights=False,
        fan_in_fan_out=variant == "gpt2",
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    theirs.save_pretrained(tmp_path / "adapter")
    found = load_model("--model", str(tmp_path / "adapter")).decoder(jnp.asarray(IDS))
    np.testing.assert_allclose(found, logits(theirs), rtol=0, atol=1e-5)


def test_adapters_that_cannot_be_read(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    tiny_family("llama").save_pretrained(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2))
    model.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    for changes, message in (
        ({"use_dora": True}, "use_dora = True; adapters that are plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"r": None}, f"its {CONFIG} does not hold"),
        ({"r": 0}, f"its {CONFIG} does not hold"),
        ({"of_a_later_version": 2}, "of_a_later_version = 2; adapters that are plain LoRA"),
        ({"base_model_name_or_path": str(tmp_path / "no")}, "neither a folder here"),
    ):
        (folder / CONFIG).write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=message):
            load_model("--model", str(folder))
    moved = LoraConfig(r=2, init_lora_weights="pissa")  # a part of the base is in its start
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), moved).save_pretrained(folder)
    with pytest.raises(InputError, match="init_lora_weights = 'pissa'"):
        load_model("--model", str(folder))
    model.save_pretrained(folder)
    tiny_family("gpt2").save_pretrained(base)
    with pytest.raises(InputError, match=r"its adapter has .* adapt no matrix"):
        load_model("--model", str(folder))


def test_how_an_adapter_begins() -> None:
    settings = LoraSettings(True)
    assert settings.lora_scale == 2.0
    assert LoraSettings(True, lora_r=4, lora_alpha=6.0, use_rslora=True).lora_scale == 3.0
    names = [tensor.name for tensor in adapted(family("llama"), None)]
    assert [name.split(".")[-2] for name in names] == ["q_proj", "v_proj"]
    assert len(adapted(family("gpt2"), None)) == 1
    with pytest.raises(
        InputError, match=r"have q_proj, .*, down_proj \(or all-linear\), got qproj"
    ):
        adapted(family("llama"), ["q_proj", "qproj"])
    for changes, message in (
        ({"lora_r": 0}, "--lora_r must be at least 1, got 0"),
        ({"lora_alpha": -1.0}, "--lora_alpha must be positive"),
        ({"lora_dropout": 0.05}, "--lora_dropout 0.05: there is no dropout"),
        ({"use_peft": False, "teacher_is_base": True}, "add --use_peft"),
        ({"teacher_is_base": True, "teacher_cache": "there"}, "leave out --teacher_model"),
        ({"lora_target_modules": ["all-linear", "q_proj"]}, "all-linear q_proj: .* every matrix"),
        ({"use_peft": False, "lora_r": 8}, "--lora_r 8: .* whole student .* --use_peft"),
        ({"use_peft": False, "lora_alpha": 8.0}, "--lora_alpha 8.0: .* add --use_peft"),
        ({"use_peft": False, "use_rslora": True}, "--use_rslora True: .* add --use_peft"),
        ({"use_peft": False, "lora_target_modules": ["a", "b"]}, "--lora_target_modules a b: "),
        ({"freeze_embeddings": True}, "--freeze_embeddings: with --use_peft"),
    ):
        with pytest.raises(InputError, match=message):
            JaxConfig(output_dir="unused", **{"use_peft": True, **changes})


def test_an_adapter_lies_along_the_axes_of_its_weights(
    pair: Callable[[str], tuple[Any, LoadedModel]],
) -> None:
    model = pair("llama")[1]
    decoder = nnx.merge(*nnx.split(model.decoder))  # the pair's is for others too
    mesh, places = jax.sharding.AbstractMesh((1, 2, 2), AXES), []

    def asked(axes: Any, shape: tuple[int, ...]) -> None:
        places.append((shape, tuple(place(mesh, axes, shape).spec)))

    attach(decoder, adapted(family("llama"), ["q_proj", "o_proj"]), 5, 1.0, 0, asked)
    assert places == [
        ((3, 32, 5), (None, "fsdp", None)),
        ((3, 5, 4, 8), (None, None, "tensor", None)),
        ((3, 4, 8, 5), (None, "tensor", None, None)),
        ((3, 5, 32), (None, None, "fsdp")),
    ]
    # PEFT's start: Kaiming uniform with a = √5, which is ±1/√inputs.
    start = np.abs(decoder.layers.query.lora.down[...]).max() * 32**0.5
    assert 0.95 < start <= 1.0


@pytest.fixture
def arguments(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)

    def build(folder: Path, **changes: Any) -> list[str]:
        settings = {
            "model_name_or_path": teacher_dir,
            "dataset_name": data,
            "eval_dataset_name": data,
            "output_dir": folder,
            "use_peft": "true",
            "lora_target_modules": "all-linear",
            "max_steps": 4,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "max_length": 40,
            "logging_steps": 1,
            "save_steps": 2,
            "max_eval_samples": 4,
            "disable_tqdm": "true",
            **changes,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return words(given)

    return build


def test_a_run_trains_the_adapter_alone(
    arguments: Callable[..., list[str]],
    student_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    words = arguments(
        run,
        model_name_or_path=student_dir,
        teacher_model_name_or_path=teacher_dir,
        eval_strategy="steps",
        eval_steps=5,
    )
    parsed = jax_distill.parse_arguments(words)
    trainer = prepare(parsed, print).trainer
    before = jax.tree.map(np.asarray, trainer.state.frozen)
    trainer.make_step()
    same = jax.tree.map(np.array_equal, before, jax.tree.map(np.asarray, trainer.state.frozen))
    assert all(jax.tree.leaves(same))
    count = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.trained))
    moments = [leaf for leaf in jax.tree.leaves(trainer.state.optimizer) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * count

    assert jax_distill.main(words) == 0
    names = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    said = capsys.readouterr().out
    assert f"adapter  r 16, α 32, in {names}, {count:,} parameters" in said
    assert "warning  --eval_steps 5 is beyond the last step, 4: no evaluation is due" in said
    student = run / "student"
    assert not (student / "model.safetensors").exists()
    assert "LoRA adapter" in (student / "README.md").read_text()
    results = json.loads((run / "results.json").read_text())
    assert results["student after"]["kl"] < results["student before"]["kl"]
    weights = load_file(student / "adapter_model.safetensors")
    assert all(np.abs(weight).max() > 0 for weight in weights.values())
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student_dir), student)
    ours = load_model("--model", str(student)).decoder(jnp.asarray(IDS))
    np.testing.assert_allclose(ours, logits(theirs), rtol=0, atol=1e-5)
    on_top = arguments(
        tmp_path / "next", model_name_or_path=student, teacher_model_name_or_path=teacher_dir
    )
    assert jax_distill.main(on_top) == 2
    assert f"{student} is an adapter of {student_dir}" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


def test_a_run_goes_on_from_its_adapter(
    arguments: Callable[..., list[str]], teacher_dir: Path, student_dir: Path, tmp_path: Path
) -> None:
    words = arguments(
        tmp_path / "run", model_name_or_path=student_dir, teacher_model_name_or_path=teacher_dir
    )

    def trainer() -> JaxTrainer:
        return prepare(jax_distill.parse_arguments(words), print).trainer

    (tmp_path / "run").mkdir()
    whole, rest = trainer(), trainer()
    whole.train()
    kept = whole.checkpointed()
    sizes = {name: sum(a.size for a in jax.tree.leaves(tree)) for name, tree in kept.items()}
    adapter = sum(a.size for a in jax.tree.leaves(whole.state.trained))
    assert sizes["trained"] == adapter  # nothing of the base
    assert 2 * adapter <= sizes["optimizer"] < 2 * adapter + 9  # two moments, and counts
    rest.train(tmp_path / "run" / "checkpoint-2")
    pairs = zip(jax.tree.leaves(rest.state), jax.tree.leaves(whole.state), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_torch_trains_the_same_adapter_alike(
    arguments: Callable[..., list[str]], teacher_dir: Path, student_dir: Path, tmp_path: Path
) -> None:
    settings = {
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": 40,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "weight_decay": 0.1,
        "alpha": 0.0,
    }
    both = {"model_name_or_path": student_dir, "teacher_model_name_or_path": teacher_dir}
    parsed = jax_distill.parse_arguments(arguments(tmp_path / "jax", **both, **settings))
    ours = prepare(parsed, print)
    ours.save(tmp_path / "start", parsed)
    found: list[float] = []
    ours.trainer.log = lambda logs: found.append(logs["loss"])  # type: ignore[method-assign]
    ours.trainer.train()

    base = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float32)
    trainer = AMiDTrainer(
        PeftModel.from_pretrained(base, tmp_path / "start", is_trainable=True),
        AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32),
        AMiDConfig(str(tmp_path / "torch"), report_to="none", use_cpu=True, **settings),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(student_dir),
    )
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected[8] < expected[0] - 0.05  # the same rows


def test_the_base_teaches_the_adapter(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """At the start both are the same, so that labels alone move the adapter."""
    words = arguments(
        tmp_path / "run", teacher_is_base="true", policy="mixed", label_weight=1.0, max_new_tokens=8
    )
    prepared = prepare(jax_distill.parse_arguments(words), print)
    trainer = prepared.trainer
    assert trainer.teacher.parameters is None
    figures = prepared.judge({"before": trainer.student}, prepared.held_out(4))
    assert figures["before"].kl == 0.0
    assert figures["before"].perplexity == figures["teacher"].perplexity
    for _ in range(3):
        trainer.make_step()
    after = prepared.judge({"after": trainer.student}, prepared.held_out(4))
    assert after["after"].kl > 1e-3
    assert after["teacher"] == figures["teacher"]
