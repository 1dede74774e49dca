"""Answers of a model to prompts in batches, for evaluation and for training on them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import PartialState
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from amidmath.integrations.common.text import tokenizers
from amidmath.integrations.torch_loop.models.model_files import context_of, logits_of_model
from amidmath.integrations.torch_loop.models.modes import evaluation_mode, generation_settings
from amidmath.integrations.torch_loop.models.trials import (
    Together,
    answers_together,
    caches_right,
    padded,
)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[torch.Tensor],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch_size: int = 8,
    tokens: int | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> list[torch.Tensor]:
    """Generate a model's answer to each prompt.

    It samples from the model's own distribution, tempered and cut to the nucleus as asked and by
    nothing else: what the model's generation_config says (top-k, penalties, …) does not count.
    In evaluation mode and with a key-value cache, however the model was set before; mode and
    configuration are restored. Prompts are batched by length, so that little is padded, and
    nothing where that would change the answers (``trials.answers_together``); with sampling, an
    answer depends on the batch that its prompt falls into.

    Under FSDP or ZeRO-3 all processes must call this together, with as many batches each.

    Args:
        model: a causal language model; one that an engine wraps must be unwrapped.
        prompts: the token ids of each prompt, one-dimensional, at least one token.
        tokenizer: says, with the model's generation_config, which tokens end an answer.
        max_new_tokens: the longest answer.
        temperature: divides the logits; 0 takes the most probable token each time.
        top_p: sample from the fewest tokens that have this probability together.
        seed: of the sampling, and torch's generators are left as they were; without it they are
            drawn from, so that a run that restores their state repeats it.
        batch_size: prompts at a time.
        tokens: answers are of the first so many tokens only; None for all that the model has.
        on_batch: called after each batch with its number of prompts.

    Returns:
        The token ids of each answer on the CPU, in the order of the prompts; one that came to its
        end includes the eos token.

    Raises:
        InputError: a prompt without tokens, or one that leaves no room for the answer; it names
            the row.
        ValueError: a parameter out of its range.
    """
    _check(max_new_tokens, temperature, top_p, batch_size)
    check_lengths(model, [len(prompt) for prompt in prompts], max_new_tokens)
    ends = end_tokens(model, tokenizer)
    pad = tokenizers.padding(tokenizer, ends, logits_of_model(model))
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if temperature > 0.0
        else {"do_sample": False}
    )
    others = []
    if tokens is not None:
        others = list(range(tokens, logits_of_model(model)))
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        suppress_tokens=others or None,
        pad_token_id=pad,
        eos_token_id=ends,
        use_cache=caches_right(model),
        **sampling,
    )
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    answers: dict[int, torch.Tensor] = {}
    together = answers_together(model)
    with evaluation_mode(model), generation_settings(model, config), _seeded(seed, device):
        for rows in _batches(order, [len(prompt) for prompt in prompts], batch_size, together):
            ids, mask = padded([prompts[row] for row in rows], pad, before=True)
            found = cast("Any", model).generate(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            )
            for row, drawn in zip(rows, found[:, ids.shape[1] :].cpu(), strict=True):
                answers[row] = _through_end(drawn, ends)
            if on_batch is not None:
                on_batch(len(rows))
    return [answers[row] for row in range(len(prompts))]


def check_lengths(
    model: PreTrainedModel,
    lengths: Sequence[int],
    max_new_tokens: int,
    numbers: Sequence[int] | None = None,
) -> None:
    """Raise InputError, with the row, unless each prompt and its answer fit the model's context."""
    tokenizers.check_lengths(context_of(model), lengths, max_new_tokens, numbers)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model names besides."""
    config = getattr(model, "generation_config", None)
    return tokenizers.end_tokens(tokenizer, getattr(config, "eos_token_id", None))


def _check(max_new_tokens: int, temperature: float, top_p: float, batch_size: int) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or positive and finite, got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


def _batches(
    order: Sequence[int], lengths: Sequence[int], size: int, together: Together
) -> Iterator[Sequence[int]]:
    """Prompts in batches of those that can be together.

    With several processes, which must have as many batches each, single ones where not all can.
    """
    if together == "padded":
        groups = [order]
    elif together == "alone" or PartialState().num_processes > 1:
        groups = [[row] for row in order]
    else:
        groups = [list(rows) for _, rows in itertools.groupby(order, lambda row: lengths[row])]
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _through_end(tokens: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """The tokens up to the first that ends the answer, which is kept; after it there is padding."""
    at = torch.isin(tokens, torch.tensor(ends)).nonzero()
    return tokens[: int(at[0]) + 1].clone() if len(at) else tokens.clone()


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Torch's generators at ``seed``, and afterwards as they were."""
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices) if seed is not None else nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        yield
