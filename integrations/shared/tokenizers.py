"""Loading a tokenizer, and saying of what lies at a name why it cannot be loaded."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from amidmath.integrations.shared.errors import InputError, first_paragraph


def load_tokenizer(flag: str, name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model; raises InputError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(place(name), trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(not_loaded(flag, "tokenizer", name, error)) from error


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
