"""A chat template that is given: the models keep their tokens."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import byte_tokenizer, save, tiny_model, vocabulary_size

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.torch_loop.run.loading import cross_entropy_trainer
from amidmath.integrations.torch_loop.settings.arguments import parse_arguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
ROWS = [{"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]}]


def trainer(folder: Path, path: Path) -> AMiDTrainer:
    config = AMiDConfig(
        str(folder), max_length=64, report_to="none", use_cpu=True, chat_template_path=str(path)
    )
    return AMiDTrainer(
        tiny_model(1, 2),
        tiny_model(1, 1),
        config,
        train_dataset=Dataset.from_list(ROWS * 2),
        processing_class=byte_tokenizer(),
    )


def source(folder: Path, *tokens: str, **changes: Any) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(tokens))
    tokenizer.chat_template = changes.pop("template", TEMPLATE)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_template_is_taken_and_no_token_added(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    other = source(tmp_path / "other", "<new>", eos_token="<extra_id_3>")
    for path, end in ((file, "</s>"), (other, "<extra_id_3>")):
        made = trainer(tmp_path, path)
        assert made.tokenizer.decode(made.train_rows[0]["input_ids"]) == "[user]why[assistant]so"
        assert made.student.get_output_embeddings().weight.shape[0] == vocabulary_size()
        assert made.settings.chat_template_path == str(path)
        assert made.tokenizer.eos_token == end
        assert made.student.config.eos_token_id == made.tokenizer.eos_token_id


def test_a_template_of_another_family_is_refused(tmp_path: Path) -> None:
    marked = TEMPLATE.replace("[", "<|start|>")
    path = source(tmp_path / "other", "<|start|>", "<|unused|>", template=marked)
    with pytest.raises(InputError, match=r"writes '<\|start\|>', which the student's tokenizer"):
        trainer(tmp_path, path)
    bare = source(tmp_path / "bare", template=None)
    with pytest.raises(InputError, match="has no chat template"):
        trainer(tmp_path, bare)
    with pytest.raises(InputError, match="cannot be read"):
        trainer(tmp_path, tmp_path / "none.jinja")


def test_the_baseline_has_the_same_tokens(tmp_path: Path) -> None:
    student = save(tiny_model(1, 2), tmp_path / "student")
    other = source(tmp_path / "other", "<new>")
    words = {
        "--model_name_or_path": student,
        "--teacher_model_name_or_path": student,
        "--dataset_name": "unused.jsonl",
        "--output_dir": tmp_path / "run",
        "--max_length": 64,
        "--chat_template_path": other,
        "--report_to": "none",
    }
    arguments = parse_arguments([str(word) for pair in words.items() for word in pair])
    config = copy.copy(arguments.config)
    config.use_cpu, config.bf16 = True, False
    made = cross_entropy_trainer(trainer(tmp_path, other), replace(arguments, config=config))
    assert made.model.get_output_embeddings().weight.shape[0] == vocabulary_size()
