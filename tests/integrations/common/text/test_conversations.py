"""Conversations in every form that datasets give them, through templates that leave things out."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import row_making
import trl
from datasets import Dataset
from tiny import byte_tokenizer, tiny_model, write_jsonl
from trl import ScriptArguments

from amidmath.integrations.common.data.splits import check_rows, load_splits, read
from amidmath.integrations.common.errors import InputError, UnfitRow
from amidmath.integrations.common.rows.from_dataset import prepare_rows
from amidmath.integrations.common.tasks.prompts import encode_prompts
from amidmath.integrations.common.tasks.reading import read_rows
from amidmath.integrations.common.tasks.tasks import TASKS
from amidmath.integrations.common.text.chat_template import ChatTemplate
from amidmath.integrations.common.text.conversations import ALIASES, ROLES, conversation, role
from amidmath.integrations.common.text.written_chats import written
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

ANY_ROLE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
TRIMMED = (
    "{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endif %}{% endfor %}"
)
ADDED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user') }}{% endif %}"
    "{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
)
TOOLS = (
    "{% for t in tools or [] %}[{{ t['name'] }}]{% endfor %}{% for m in messages %}"
    "<{{ m['role'] }}>{{ m['content'] or '' }}"
    "{% for c in m.tool_calls or [] %}({{ c['function']['name'] }}){% endfor %}{% endfor %}"
)
TEMPLATES = {"any role": ANY_ROLE, "trimmed": TRIMMED, "added": ADDED, "tools": TOOLS}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"for": "it"}}}


Settings = partial(row_making.Settings, max_length=200)


def tokenizer(template: str) -> Any:
    made = byte_tokenizer()
    made.chat_template = template
    return made


def texts(rows: list[dict[str, Any]], template: str, **settings: Any) -> list[str]:
    """What is learned of each row."""
    encoder = tokenizer(template)
    made = prepare_rows(
        Dataset.from_list(rows, on_mixed_types="use_json"), encoder, Settings(**settings)
    )
    return [encoder.decode([t for t in row["labels"] if t != -100]) for row in made]


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": who, "content": what} for who, what in turns]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_name_of_a_role_is_the_same_role(name: str) -> None:
    for alias, usual in ALIASES.items():
        if usual == "tool":
            continue
        turns = [["user", "why"], ["assistant", "so"]]
        (wanted,) = texts([chat(*map(tuple, turns))], TEMPLATES[name])
        renamed = [[alias if who == usual else who, what] for who, what in turns]
        older = {"conversations": [{"from": who.upper(), "value": what} for who, what in renamed]}
        assert texts([older], TEMPLATES[name]) == [wanted]
        assert texts([chat(*map(tuple, renamed))], TEMPLATES[name]) == [wanted]
        assert "why" in wanted
        assert "so" in wanted
    (found,) = texts([{"conversations": [{"from": "human", "value": "a"}, {"from": "observation",
        "value": "b"}]}], TOOLS)  # fmt: skip
    assert found == "<user>a<tool>b"


def test_a_role_that_the_template_names_is_kept() -> None:
    named = "{% for m in messages %}{% if m.role == 'observation' %}!{% endif %}{{ m.content }}"
    assert texts([chat(("observation", "hot"))], named + "{% endfor %}") == ["!hot"]
    assert role("model", {"model", "assistant"}) == "assistant"
    for one in ROLES:
        assert role(one.capitalize()) == one
    with pytest.raises(UnfitRow, match=r"role 'narrator', which the chat template does not name"):
        role("narrator")


CONTENTS: dict[str, Any] = {
    "text": "Hi there",
    "parts": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}],
    "parts with nulls": [{"type": "text", "text": "Hi there", "image": None}],
    "bare parts": [{"text": "Hi there"}],
    "texts": ["Hi ", "there"],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_parts_are_one_text(name: str) -> None:
    for content in CONTENTS.values():
        rows = [
            chat(("user", content), ("assistant", content)),
            {
                "prompt": [{"role": "user", "content": content}],
                "completion": [{"from": "gpt", "value": content}],
            },
        ]
        assert texts(rows[:1], TEMPLATES[name]) == ["<user>Hi there<assistant>Hi there"]
        assert texts(rows[1:], TEMPLATES[name])[0].endswith("Hi there")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"type": "image", "url": "x"}], "the part {'type': 'image', 'url': 'x'}, which is no"),
        ([{"type": "text", "text": None}], "which is no text"),
        ([], "the content []"),
        (None, "the content None"),
        ({"text": "Hi"}, "the content {'text': 'Hi'}"),
        (3, "the content 3"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(content: Any, says: str) -> None:
    rows = Dataset.from_list(
        [chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("assistant", content))],
        on_mixed_types="use_json",
    )
    with pytest.raises(InputError) as caught:
        check_rows("--dataset_name", rows, "text")
    assert "--dataset_name: row 1 has in messages[1] the " in str(caught.value)
    assert says in str(caught.value)


def test_templates_that_want_parts() -> None:
    """As those of models that see do, whose contents are lists."""
    wanting = (
        "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    for template in (wanting, wanting.replace("part['type']", "part.type + ''")):
        for content in CONTENTS.values():
            rows = [chat(("user", content), ("assistant", content))]
            assert texts(rows, template) == ["<user>Hi there<assistant>Hi there"]


@pytest.mark.parametrize("path", sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja")))
def test_published_templates_write_plain_conversations(path: Path) -> None:
    encoder = tokenizer(path.read_text("utf-8"))
    encoder.bos_token = "<bos>"
    template = ChatTemplate(encoder)
    for said in (["why", "so"], ["e", "e", "user", "a"], [" why\n", "<think>\nhm\n</think>\n\nso"]):
        turns = conversation(
            [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)], "c"
        )
        found = written(template, [turns], {"tools": None}, False)
        assert all(text.split("\n")[-1].strip() in found.whole for text in said)


REFUSED = {
    "left out": (TRIMMED, ("tool", "hot"), "of role 'tool', of which the chat template does not"),
    "unknown": (ANY_ROLE, ("narrator", "then"), "role 'narrator', which the chat template does"),
    "raised": (ADDED, ("system", "be brief"), "refused by the chat template: System role not"),
    "order": (ADDED, ("user", "again"), "Conversation roles must alternate"),
    "undefined": (ANY_ROLE + "{{ messages[2].a.b }}", ("user", "again"), "has no attribute 'a'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_a_template_refuses_is_named_or_left_out(name: str) -> None:
    template, turn, says = REFUSED[name]
    if name == "undefined":
        template = ANY_ROLE + "{% if messages | length == 3 %}{{ messages[2].a.b }}{% endif %}"
    fine = chat(("user", "why"), ("assistant", "so"))
    rows = [fine, chat(turn, *((t["role"], t["content"]) for t in fine["messages"])), fine]
    with pytest.raises(InputError) as caught:
        texts(rows, template)
    message = str(caught.value)
    assert message.startswith("train row 1 ")
    assert says in message
    assert "--drop_unlearnable_rows" in message
    said: list[str] = []
    settings = Settings(drop_unlearnable_rows=True)
    made = prepare_rows(Dataset.from_list(rows), tokenizer(template), settings, say=said.append)
    assert len(made) == 2
    assert said[0].startswith("Left out: 1 of 3 train rows cannot be learned from, first row 1: it")
    assert says in said[0]


def test_rows_are_named_by_their_place_in_the_dataset(tmp_path: Path) -> None:
    """Held-out rows are drawn of them, and of a pair there are two."""
    fine, bad = chat(("user", "why"), ("assistant", "so")), chat(("narrator", "then"))
    path = str(write_jsonl(tmp_path / "rows.jsonl", [*[fine] * 20, bad, *[fine] * 9]))
    for seed in range(4):
        script: Any = ScriptArguments(dataset_name=path)
        script.eval_dataset_name, script.eval_fraction = None, 0.3
        for part in load_splits(script, "text", seed):
            if bad["messages"][0]["role"] in str(part["messages"][:]):
                with pytest.raises(InputError, match=r"train row 20 .*'narrator'"):
                    prepare_rows(part, tokenizer(ANY_ROLE), Settings())
    pairs = [{"prompt": "why", "chosen": "so", "rejected": "no"}] * 3
    pairs.append({"prompt": "why", "chosen": "so", "rejected": ""})
    with pytest.raises(InputError, match=r"1 of 8 train rows .* first row 3: it has no token"):
        prepare_rows(Dataset.from_list(pairs), byte_tokenizer(), Settings(), pairs=True)


def test_a_short_text_that_stands_elsewhere_is_missed_all_the_same() -> None:
    with pytest.raises(InputError, match=r"row 0 has a message 1, of role 'tool'"):
        texts([chat(("user", "use"), ("tool", "use"), ("assistant", "so"))], TRIMMED)
    # The template writes it, in other words.
    assert texts([chat(("user", "use"))], ANY_ROLE.replace("}}{%", " | upper }}{%")) == [
        "<user>USE"
    ]


def test_calls_of_tools_are_written_or_missed() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [
        {"messages": [{"role": "user", "content": "why"}, called]},
        chat(("user", "why"), ("assistant", "so")),
    ]
    assert texts(rows, TOOLS) == ["<user>why<assistant>(look)", "<user>why<assistant>so"]
    with pytest.raises(
        InputError, match=r"row 0 has a message 1, .* does not write the tool calls"
    ):
        texts(rows, TRIMMED.replace("m['content']", "(m['content'] or '')"))
    with pytest.raises(InputError, match=r"row 0 is refused by the chat template: .*content"):
        texts(rows, ADDED)


@pytest.mark.parametrize("packed", [False, True])
def test_tools_that_are_not_written_are_counted(packed: bool) -> None:
    row = chat(("user", "why"), ("assistant", "so")) | {"tools": '[{"name": "look"}]'}
    rows = Dataset.from_list([row | {"tools": None}, row, row])
    said: list[str] = []
    settings = Settings(packing=packed)
    prepare_rows(rows, tokenizer(ANY_ROLE), settings, say=said.append)
    assert [line[:37] for line in said] == ["2 of 3 train rows, first row 1: the c"]
    prepare_rows(rows, tokenizer(TOOLS), settings, say=said.append)
    assert len(said) == 1


EMPTY = {
    "text": {"prompt": "why", "completion": ""},
    "blank": {"prompt": "why", "completion": " \n"},
    "ended": {"prompt": "why", "completion": "</s>"},
    "chat": {
        "prompt": [{"role": "user", "content": "why"}],
        "completion": [{"role": "assistant", "content": ""}],
    },
    "parts": {
        "prompt": [{"role": "user", "content": "why"}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": " "}]}],
    },
}


@pytest.mark.parametrize("name", EMPTY)
def test_of_an_empty_answer_nothing_is_learned(name: str) -> None:
    row = EMPTY[name]
    ended = ANY_ROLE.replace("{% endfor %}", "</s>{% endfor %}")
    with pytest.raises(InputError, match=r"1 of 1 train rows .* row 0: it has no token to learn"):
        texts([row], ended)
    full = row | {"completion": "so" if name in ("text", "blank", "ended") else [
        {"role": "assistant", "content": "so"}]}  # fmt: skip
    (left,) = texts([row, full], ended, drop_unlearnable_rows=True)
    assert left == "<assistant>so</s>".removeprefix("" if name in ("chat", "parts") else "<assistan"
        "t>")  # fmt: skip
    assert len(texts([row], ended, completion_only_loss=False)) == 1


def test_mixed_kinds_and_no_template() -> None:
    mixed = [{"prompt": "why", "completion": "so"}, {"prompt": [{"role": "user", "content": "b"}],
        "completion": "so"}]  # fmt: skip
    rows = Dataset.from_list(mixed, on_mixed_types="use_json")
    with pytest.raises(
        InputError, match=r"row 1 has messages in column 'prompt', and row 0 a text"
    ):
        check_rows("--dataset_name", rows, "text")
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        prepare_rows(Dataset.from_list([chat(("user", "a"))]), bare, Settings())


def test_evaluation_reads_conversations_alike(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": [{"type": "text", "text": "why"}]}]
    row = {"conversations": [*turns, {"from": "gpt", "value": "so"}]}
    path = write_jsonl(tmp_path / "chats.jsonl", [row])
    (found,) = read_rows(str(path), TASKS["completion"]).rows
    assert found.references == ("so",)
    encoder = tokenizer(ANY_ROLE)
    prompts = encode_prompts(encoder, [found])
    assert encoder.decode(prompts.ids[0]) == "<user>why"
    trained = read("--dataset_name", str(path), None)["train"]
    assert "<user>why<assistant>so" in encoder.decode(
        prepare_rows(trained, encoder, Settings())[0]["input_ids"]
    )
    silent = chat(("user", "why"), ("tool", "hot"), ("assistant", "so"))
    path = write_jsonl(tmp_path / "tools.jsonl", [row, silent])
    rows = read_rows(str(path), TASKS["completion"]).rows
    with pytest.raises(InputError, match=r"row 1 has a message 1, of role 'tool'"):
        encode_prompts(tokenizer(TRIMMED), rows)


def test_evaluation_gives_tools_to_the_template(tmp_path: Path) -> None:
    row = chat(("user", "why"), ("assistant", "so")) | {"tools": [{"name": "look"}]}
    path = write_jsonl(tmp_path / "tools.jsonl", [row, row | {"tools": None}])
    rows = read_rows(str(path), TASKS["completion"]).rows
    prompts = encode_prompts(tokenizer(TOOLS), rows)
    assert byte_tokenizer().decode(prompts.ids[0]) == "[look]<user>why"
    assert prompts.deaf == 0
    assert encode_prompts(tokenizer(ANY_ROLE), rows).deaf == 1
    assert encode_prompts(tokenizer(TOOLS), rows, style="plain").deaf == 1


def test_the_torch_loop_reads_conversations_alike(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": CONTENTS["parts"]}, {"from": "gpt", "value": "so"}]
    rows = Dataset.from_list([{"conversations": turns}] * 2, on_mixed_types="use_json")
    answers = "{% generation %}{{ m['content'] }}{% endgeneration %}"
    marked = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}"
        + answers
        + "{% endif %}{% endfor %}"
    )

    def trained(rows: Dataset, template: str, **settings: Any) -> Dataset:
        config = AMiDConfig(
            str(tmp_path), max_length=64, report_to="none", use_cpu=True, **settings
        )
        models = (tiny_model(1, 2), tiny_model(1, 1))
        encoder = tokenizer(template)
        return AMiDTrainer(*models, config, train_dataset=rows, processing_class=encoder).train_rows

    made = trained(rows, ANY_ROLE)
    assert byte_tokenizer().decode(made[0]["input_ids"]) == "<user>Hi there<assistant>so"
    assert made.column_names == ["input_ids", "labels"]
    silent = Dataset.from_list([chat(("user", "why"), ("tool", "hot"))])
    with pytest.raises(InputError, match="train row 0 has a message 1"):
        trained(silent, TRIMMED)
    with pytest.raises(InputError, match="a tokenizer in Python does not say"):
        trained(rows, marked, assistant_only_loss=True)


def test_a_conversation_keeps_what_else_it_has() -> None:
    turn = {"from": "gpt", "value": "so", "weight": 1, "tool_calls": None}
    assert conversation([turn], "c") == [{"role": "gpt", "content": "so", "weight": 1}]
