"""Prepared rows against those of TRL's SFTTrainer."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from row_making import Settings
from tiny import SENTENCES, byte_tokenizer, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, pack_dataset

from amidmath.integrations.common.data.splits import unpaired
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.from_dataset import (
    first_targets,
    in_one_format,
    learnable,
    prepare_rows,
)
from amidmath.integrations.common.rows.packing import best_fit
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

MARKED_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def turns(*texts: str) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def older(*texts: str) -> list[dict[str, str]]:
    return [{"from": turn["role"], "value": turn["content"]} for turn in turns(*texts)]


def answers(text: str, pairs: bool) -> dict[str, str]:
    return {"chosen": text, "rejected": f"no {text}"} if pairs else {"completion": text}


# Of different lengths, some equal, so that packing has something to choose.
ASKED = ["a: ", "what lies between them? ", "why", "b: ", "to whom? "]
ANSWERS = ["yes", "a mixture of two", "the teacher knows the answer", "so", "a. ", "yes"]
PAIRS = list(zip(ASKED * 2, ANSWERS * 2, strict=False))
FORMATS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in [*SENTENCES, *ANSWERS[:3], "closed</s>"]],
    "completions": [{"prompt": p, "completion": c} for p, c in PAIRS],
    "answers": [{"prompt": turns(p), "completion": [turns(p, c)[1]]} for p, c in PAIRS],
    "messages": [{"messages": turns(p, c, "and", "then")} for p, c in PAIRS],
    "conversations": [{"conversations": older(p, c)} for p, c in PAIRS],
    "ids": [{"input_ids": list(range(3, 3 + n))} for n in (5, 9, 2, 9, 5, 3)],
    "labels": [
        {"input_ids": list(range(3, 3 + n)), "labels": [-100] + [7] * (n - 1)} for n in (5, 9, 2)
    ],
    "masks": [
        {
            "input_ids": list(range(3, 3 + n)),
            "completion_mask": [0] + [1] * (n - 1),
            "assistant_masks": [1] * (n - 1) + [n % 2],
        }
        for n in (5, 9, 3)
    ],
}


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are longer than a byte, with a template that marks answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        chat_template=MARKED_TEMPLATE,
    )


def of_trl(rows: Dataset, tokenizer: Any, settings: Settings, folder: Path) -> Dataset:
    """The rows that SFTTrainer trains on."""
    known = asdict(settings)
    del known["drop_unlearnable_rows"]
    config = SFTConfig(str(folder), report_to="none", use_cpu=True, bf16=False, **known)
    trainer = SFTTrainer(tiny_model(1, 1), config, train_dataset=rows, processing_class=tokenizer)
    return trainer.train_dataset


def content(rows: Dataset) -> list[dict[str, Any]]:
    names = [c for c in ("input_ids", "labels", "seq_lengths") if c in rows.column_names]
    return rows.select_columns(names).to_list()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(max_length=None),
        Settings(max_length=24),
        Settings(completion_only_loss=False),
        Settings(completion_only_loss=True),
        Settings(packing=True, max_length=70),
        Settings(packing=True, max_length=70, packing_strategy="wrapped"),
    ],
    ids=["plain", "whole", "cut", "all_tokens", "completions", "bfd", "wrapped"],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_those_of_trl(
    kind: str, settings: Settings, merging: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = Dataset.from_list(FORMATS[kind])
    found = prepare_rows(rows, merging, settings, say=lambda _: None)
    expected = of_trl(rows, merging, settings, tmp_path)
    assert content(found) == content(expected)
    assert set(found.column_names) <= {"input_ids", "labels", "seq_lengths"}


def test_a_tokenizer_in_python_gives_the_same(tmp_path: Path) -> None:
    for kind in ("completions", "messages"):
        rows = Dataset.from_list(FORMATS[kind][:3])
        said: list[str] = []
        found = prepare_rows(rows, byte_tokenizer(), Settings(), say=said.append)
        assert content(found) == content(of_trl(rows, byte_tokenizer(), Settings(), tmp_path))
        assert said == []  # it ends a prompt alone with an eos token, which is no text


@pytest.mark.parametrize("kind", ["answers", "messages"])
def test_only_what_the_assistant_says_is_learned(
    kind: str, merging: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows, settings = Dataset.from_list(FORMATS[kind]), Settings(assistant_only_loss=True)
    found = prepare_rows(rows, merging, settings)
    assert content(found) == content(of_trl(rows, merging, settings, tmp_path))
    learned = [id_ for id_ in found[1]["labels"] if id_ != -100]
    said = ANSWERS[1] + "</s>" + ("then</s>" if kind == "messages" else "")
    assert merging.decode(learned) == said
    older_ones = Dataset.from_list(FORMATS["conversations"])
    named = Dataset.from_list([{"messages": turns(p, c)} for p, c in PAIRS])
    expected = of_trl(named, merging, settings, tmp_path)
    assert content(prepare_rows(older_ones, merging, settings)) == content(expected)


def test_tools_go_to_the_template(merging: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    merging = PreTrainedTokenizerFast(
        tokenizer_object=merging.backend_tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        chat_template="{{ style }}{% for t in tools or [] %}{{ t['name'] }} {% endfor %}"
        + MARKED_TEMPLATE,
    )
    rows = Dataset.from_list(
        [
            {
                "messages": turns("why", "so"),
                "tools": f'[{{"name": "tool{i}"}}]',
                "chat_template_kwargs": {"style": "brief"},
            }
            for i in range(2)
        ]
    )
    found = prepare_rows(rows, merging, Settings())
    assert content(found) == content(of_trl(rows, merging, Settings(), tmp_path))
    assert "brieftool1 " in merging.decode(found[1]["input_ids"])


def test_pairs_make_two_rows_with_their_writers(
    merging: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = Dataset.from_list([{"prompt": p, **answers(c, pairs=True)} for p, c in PAIRS[:3]])
    found = prepare_rows(rows, merging, Settings(max_length=16), pairs=True)
    expected = of_trl(unpaired(rows), merging, Settings(max_length=16), tmp_path)
    assert content(found) == content(expected)
    assert found["source"][:] == [0, 1] * 3
    for refused in ({"pairs": False}, {"pairs": True, "packing": True}):
        settings = Settings(packing=refused.pop("packing", False))
        with pytest.raises(InputError, match=r"pairs of answers .* --method distillm2"):
            prepare_rows(rows, merging, settings, **refused)


def test_a_prompt_that_ends_within_a_token(
    merging: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = Dataset.from_list(
        [
            {"prompt": "the teacher ", "completion": "knows"},
            {"prompt": "the stu", "completion": "dent learns"},
        ]
    )
    said: list[str] = []
    found = prepare_rows(rows, merging, Settings(), say=said.append)
    assert content(found) == content(of_trl(rows, merging, Settings(), tmp_path))
    (line,) = said
    assert line.startswith("2 of 2 train rows, first row 0: prompt and completion do not begin")
    whole = Dataset.from_list([{"prompt": "the", "completion": " teacher"}])
    prepare_rows(whole, merging, Settings(), say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
@pytest.mark.parametrize("spread", [3, 40, 90])
def test_many_rows_are_packed_as_trl_packs_them(strategy: str, spread: int) -> None:
    lengths = np.random.default_rng(spread).integers(2, 2 + spread, 2300)
    ids = [list(range(n)) for n in lengths.tolist()]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    settings = Settings(packing=True, max_length=64, packing_strategy=strategy)
    found = prepare_rows(rows, None, settings)
    assert content(found) == content(pack_dataset(rows, 64, strategy))


def test_best_fit_leaves_the_least_room() -> None:
    assert best_fit([5, 3, 2, 0, 7, 1], 10) == [[4, 1], [0, 2, 5]]
    assert best_fit([4, 4, 3, 3, 3, 3], 7) == [[0, 2], [1, 3], [4, 5]]
    assert best_fit([], 3) == []


def test_a_text_beside_prompt_and_completion_does_not_count(
    merging: PreTrainedTokenizerFast,
) -> None:
    both = Dataset.from_list([{"text": "ab", "prompt": "a", "completion": "b"}])
    alone = both.remove_columns("text")
    found = prepare_rows(both, merging, Settings())
    assert content(found) == content(prepare_rows(alone, merging, Settings()))
    assert found[0]["labels"][-1] == merging.eos_token_id


def test_one_format() -> None:
    chats = [turns("why", "so"), older("why", "so")]
    for messages in chats:
        row = {"prompt": "why", "messages": messages, "text": "t", "tools": None}
        found = in_one_format(Dataset.from_list([row]), "text", pairs=False, joined=False)
        assert found.to_list() == [{"messages": messages, "tools": None}]
        named = Dataset.from_list([{"conversations": messages}])
        found = in_one_format(named, "text", pairs=False, joined=False)
        assert found.to_list() == [{"messages": messages}]


def test_first_targets() -> None:
    labels = [[5, 6], [-100, -100, 7], [], [5], [-100], [-100, 3, -100]]
    rows = Dataset.from_dict({"labels": labels})
    inf = np.inf
    assert first_targets(rows).tolist() == [1, 2, inf, inf, inf, 1]
    many = Dataset.from_dict({"labels": labels * 400})
    assert first_targets(many).tolist() == [1, 2, inf, inf, inf, 1] * 400


def test_rows_without_a_token_to_learn(merging: PreTrainedTokenizerFast) -> None:
    rows = Dataset.from_list(
        [
            {"input_ids": [3, 4], "labels": [3, 4]},
            {"input_ids": [3] * 9, "labels": [-100] * 8 + [5]},
            {"input_ids": [3, 4], "labels": [3, -100]},
        ]
    )
    with pytest.raises(InputError) as caught:
        prepare_rows(rows, merging, Settings(max_length=8))
    assert "2 of 3 train rows cannot be learned from, first row 1: its prompt has 8 tokens" in str(
        caught.value
    )
    said: list[str] = []
    kept = Settings(max_length=8, drop_unlearnable_rows=True)
    found = prepare_rows(rows, merging, kept, name="eval", say=said.append)
    assert content(found) == [{"input_ids": [3, 4], "labels": [3, 4]}]
    assert said[0].startswith("Left out: 2 of 3 eval rows cannot be learned from, first row 1")
    with pytest.raises(InputError, match=r"row 0: it has no token to learn .* nothing would be"):
        learnable(rows.select([2]), 8, "train", drop=True, say=said.append)
    wrapped = Settings(max_length=8, packing=True, packing_strategy="wrapped")
    assert len(prepare_rows(rows.select([0, 1]), merging, wrapped)) == 2


@pytest.mark.parametrize(
    ("row", "changes", "says"),
    [
        ({"text": "a"}, {"assistant_only_loss": True}, "needs conversations, and the train rows"),
        ({"text": "a"}, {"packing": True, "packing_strategy": "x"}, "one of bfd, wrapped, got 'x'"),
        ({"text": "a"}, {"packing": True, "max_length": None}, "--packing needs --max_length"),
        ({"story": "a"}, {}, r"the columns \['story'\] hold no training text"),
        ({"messages": "a"}, {}, r"the columns \['messages'\] hold no training text"),
        (
            {"prompt": "a", "completion": turns("b")},
            {},
            "the column 'prompt' is text and 'completion' has messages",
        ),
        (
            {"input_ids": [3, 4, 5], "labels": [4, 5]},
            {},
            "train row 0: labels has 2 entries and input_ids 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    row: dict[str, Any],
    changes: dict[str, Any],
    says: str,
    merging: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(InputError, match=says):
        prepare_rows(Dataset.from_list([row]), merging, Settings(**changes))


def test_a_template_must_say_what_the_assistant_generates() -> None:
    rows = Dataset.from_list(FORMATS["messages"])
    with pytest.raises(InputError, match="does not say what the assistant generates"):
        prepare_rows(rows, byte_tokenizer(), Settings(assistant_only_loss=True))


def test_a_mask_that_is_not_used_is_said(merging: PreTrainedTokenizerFast) -> None:
    said: list[str] = []
    rows = Dataset.from_list(FORMATS["masks"])
    prepare_rows(rows, merging, Settings(), say=said.append)
    assert said[0].startswith("The train rows' completion_mask is not used")
    prepare_rows(rows, merging, Settings(completion_only_loss=True), say=said.append)
    assert len(said) == 1


def test_without_torch() -> None:
    program = """
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *path: None if name == "torch" else found(name, *path)
from datasets import Dataset
from transformers import ByT5Tokenizer
from amidmath.integrations.common.rows.batches import Batches, counted
from amidmath.integrations.common.policies.rollout_rows import prompts_of
from amidmath.integrations.common.rows.from_dataset import prepare_rows
class Settings:
    max_length, packing, packing_strategy = 16, True, "bfd"
    completion_only_loss, assistant_only_loss, dataset_text_field = None, False, "text"
    dataset_num_proc, drop_unlearnable_rows = None, False
rows = Dataset.from_list([{"prompt": "a: ", "completion": "yes"}] * 3)
made = prepare_rows(rows, ByT5Tokenizer(), Settings())
batch = Batches(made, batch_size=2, pad=0).step(0)
assert "torch" not in sys.modules
print(batch["input_ids"].shape, counted(batch).sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[-2] == "(1, 2, 16) 12"


@pytest.mark.parametrize("pairs", [False, True])
def test_both_loops_train_on_the_same_rows(
    pairs: bool, merging: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = Dataset.from_list(
        [{"prompt": p, "text": "t", **answers(c, pairs)} for p, c in PAIRS[:4]]
    )
    config = AMiDConfig(
        str(tmp_path),
        method="distillm2" if pairs else "kl",
        max_length=64,
        report_to="none",
        use_cpu=True,
    )
    trainer = AMiDTrainer(
        tiny_model(1, 2), tiny_model(1, 1), config, train_dataset=rows, processing_class=merging
    )
    found = prepare_rows(rows, merging, Settings(), pairs=pairs)
    assert content(found) == content(trainer.train_rows)
    assert [row["labels"][0] for row in found] == [-100] * len(found)
    assert [row["labels"][-1] for row in found] == [merging.eos_token_id] * len(found)
    if pairs:
        assert found["source"][:] == trainer.train_rows["source"][:]
