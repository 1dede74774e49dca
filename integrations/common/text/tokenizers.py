"""Tokenizers: loading them, what ends an answer, whether a prompt leaves room for one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from amidmath.integrations.common.errors import InputError, first_paragraph


def load_tokenizer(flag: str, name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or beside an adapter's base; InputError if there is none."""
    if not any(Path(name).glob("tokenizer*")):
        name, kwargs["revision"] = own_or_base(name, kwargs.get("revision", "main"))
    try:
        return AutoTokenizer.from_pretrained(place(name), trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(not_loaded(flag, "tokenizer", name, error)) from error


def vocabulary_size(flag: str, name: str, revision: str) -> int:
    """For how many tokens a model, or an adapter's base, has embeddings, by its configuration.

    Raises:
        InputError: there is no such model.
    """
    name, revision = own_or_base(name, revision)
    try:
        if not Path(name).is_dir():
            file = "adapter_config.json"  # None where the hub's model is no adapter
            adapter = cached_file(
                name, file, revision=revision, _raise_exceptions_for_missing_entries=False
            )
            if adapter is not None:
                name, revision = own_or_base(str(Path(adapter).parent), revision)
        config = AutoConfig.from_pretrained(place(name), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(not_loaded(flag, "model", name, error)) from error
    return int(config.get_text_config().vocab_size)


def take_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Give a tokenizer a chat template, and what ends its texts, if it has that token.

    No token is added, which TRL would do: a teacher has not learned it, and the student would have
    to have more logits than the teacher.

    Args:
        tokenizer: the student's; it is changed.
        path: a file (.jinja, .j2), or another tokenizer, by its folder or its hub name.

    Raises:
        InputError: there is none, or it writes tokens that the tokenizer has not.
    """
    flag = "--chat_template_path"
    if path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{flag}: {path} cannot be read: {error}") from error
        return
    other = load_tokenizer(flag, path)
    if not other.chat_template:
        raise InputError(f"{flag}: the tokenizer {path} has no chat template")
    template, known = other.get_chat_template(), tokenizer.get_vocab()
    marks = [str(token) for token in other.added_tokens_decoder.values()]
    unknown = [mark for mark in marks if mark in template and mark not in known]
    if unknown:
        raise InputError(
            f"{flag}: the template of {path} writes {', '.join(map(repr, unknown))}, which the "
            "student's tokenizer does not have as tokens, nor the teacher's: give a template of "
            "their family, or one that writes other marks as a .jinja file"
        )
    tokenizer.chat_template = template
    if other.eos_token in known:
        tokenizer.eos_token = other.eos_token


def end_tokens(tokenizer: PreTrainedTokenizerBase, named: int | list[int] | None) -> list[int]:
    """The tokens that end an answer.

    Args:
        tokenizer: has one, or none.
        named: what the model's generation configuration calls ``eos_token_id``.

    Raises:
        InputError: there are none.
    """
    several = named if isinstance(named, list) else [named]
    ends = [token for token in (tokenizer.eos_token_id, *several) if isinstance(token, int)]
    if not ends:
        raise InputError("neither the tokenizer nor the model names a token that ends an answer")
    return list(dict.fromkeys(ends))


def padding(tokenizer: PreTrainedTokenizerBase, others: Sequence[int], size: int) -> int:
    """A token for what no token sees.

    Args:
        tokenizer: whose own it is, if models have an embedding for that.
        others: the first of them it is otherwise.
        size: how many tokens the models have embeddings for.
    """
    own = tokenizer.pad_token_id
    return own if isinstance(own, int) and own < size else others[0]


def check_lengths(
    context: int | None,
    lengths: Sequence[int],
    max_new_tokens: int,
    numbers: Sequence[int] | None = None,
) -> None:
    """Raise InputError, with the row, unless each prompt and its answer fit a model's context.

    Args:
        context: how many tokens the model can read; None for any number.
        lengths: tokens of each prompt.
        max_new_tokens: the longest answer.
        numbers: what to call the rows; their order if not given.
    """
    for row, length in zip(numbers or range(len(lengths)), lengths, strict=True):
        if length == 0:
            raise InputError(
                f"row {row}: its prompt has no tokens; a prompt must have at least one"
            )
        if context is not None and length + max_new_tokens > context:
            raise InputError(
                f"row {row}: its prompt has {length} tokens, which with {max_new_tokens} new ones "
                f"(--max_new_tokens) exceed the model's context of {context}: a prompt may have "
                f"{max(context - max_new_tokens, 0)}. Lower --max_new_tokens, or cut prompts with "
                "--max_prompt_length"
            )


def own_or_base(name: str, revision: str) -> tuple[str, str]:
    """A model's name and revision; for a local folder with a LoRA adapter, those of its base."""
    try:
        content = json.loads((Path(name) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return name, revision
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str):
        return name, revision
    return base, str(content.get("revision") or "main")


def place(name: str) -> str:
    """A local folder by its absolute path, which a saved LoRA adapter then points to."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def not_loaded(flag: str, what: str, name: str, error: Exception) -> str:
    """Why there is no model or tokenizer at a name."""
    reason = first_paragraph(error)
    if Path(name).is_dir():
        return f"{flag}: the folder {name} holds no {what} that can be loaded: {reason}"
    return (
        f"{flag}: {name!r} is neither a folder here nor a {what} that could be loaded from the "
        f"hub: {reason}"
    )
