"""Trials of a model when it is loaded: rows packed and padded, adapters saved and loaded.

Families differ in whether they keep packed rows apart and in what left padding does to them, and
nothing in a configuration says so. What is tried is what training and generation do.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import GenerationConfig, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from amidmath.integrations.common.errors import InputError, first_paragraph
from amidmath.integrations.torch_loop.models.model_files import logits_of_model
from amidmath.integrations.torch_loop.models.modes import (
    evaluation_mode,
    generation_settings,
    needs_half,
)
from amidmath.integrations.torch_loop.models.states import States, is_here

_LENGTHS = (9, 7)
_SPECIAL = 3  # the first tokens are often padding, and ends
_TOGETHER_BY = "_amidmath_answers_together"
_CACHES_BY = "_amidmath_caches_right"
_FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError)

# How far states may differ, as a share of the largest, in float32 and in fewer digits: between two
# documents apart and together, and where only another one changes.
_APART = (1e-3, 0.1)
_TOGETHER = (1e-5, 1e-2)


def check_packing(role: str, model: PreTrainedModel, flag: str) -> None:
    """Raise InputError unless rows that are packed into one do not see each other.

    Args:
        role: student or teacher, for the message.
        model: its states exposed. One that is not whole in this process is not tried.
        flag: which asks for it.
    """
    if not is_here(model):
        return
    first, other, second = documents(model)
    try:
        with torch.no_grad(), evaluation_mode(model):
            apart = torch.cat([_states(model, [row]) for row in (first, second)])
            together = _states(model, [first, second])
            changed = _states(model, [other, second])
    except _FAILURES as error:
        problem = f"does not take packed rows ({type(error).__name__}: {first_paragraph(error)})"
    else:
        leak = _difference(together[len(first) :], changed[len(first) :])
        moved = _difference(together, apart)
        if leak <= _allowed(model, _TOGETHER) and moved <= _allowed(model, _APART):
            return
        problem = (
            "does not keep packed rows apart: the hidden states of two rows in one differ by "
            f"{max(leak, moved):.1%} of their size from those of each alone"
        )
    raise InputError(
        f"{flag} true: the {role}, a {type(model).__name__}, {problem}. Leave {flag} out, or give "
        "--packing true --packing_strategy wrapped, which makes one stream of text of the rows"
    )


def check_padded(role: str, model: PreTrainedModel) -> None:
    """Raise InputError where a row means something else with padding after it.

    Args:
        role: student or teacher, for the message.
        model: its states exposed. One that is not whole in this process is not tried.
    """
    if not is_here(model):
        return
    long, _, short = documents(model)
    ids, mask = padded([long, short], 0, before=False)
    with torch.no_grad(), evaluation_mode(model):
        together = _run(model, {"input_ids": ids, "attention_mask": mask})[1, : len(short)]
        moved = _difference(together, _states(model, [short]))
    if moved > _allowed(model, _APART):
        raise InputError(
            f"the {role}, a {type(model).__name__}, makes something else of a row with padding "
            f"after it: its hidden states differ by {moved:.1%} of their size; give "
            "--per_device_train_batch_size 1 --per_device_eval_batch_size 1"
        )


def check_adapter(model: PeftModel) -> None:
    """Raise InputError where an adapter would not be learned, or not be loaded as it was saved.

    Args:
        model: PEFT's, the states of its base exposed. One that is not whole here is not tried.
    """
    base: Any = model.get_base_model()
    if not is_here(base):
        return
    ids = documents(base)[2][None].to(next(base.parameters()).device)
    with torch.enable_grad(), evaluation_mode(base):
        logits = base(input_ids=ids, with_states=lambda states: states.logits)
    if not logits.requires_grad:
        raise InputError(
            f"--use_peft: a {type(base).__name__} lets no gradient through to its adapter, which "
            "would learn nothing: leave --use_peft out"
        )
    saved = get_peft_model_state_dict(model)
    loaded: Any = set_peft_model_state_dict(model, dict(saved))
    lost = sorted(loaded.unexpected_keys)
    if lost:
        layers = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in lost})
        raise InputError(
            f"--use_peft: of an adapter on a {type(base).__name__} PEFT does not load {len(lost)} "
            f"of {len(saved)} weights again once they are saved, {lost[0]} for one: name layers "
            f"with --lora_target_modules, without {', '.join(layers)} where that is"
        )


Together = Literal["padded", "of one length", "alone"]


def answers_together(model: Any) -> Together:
    """Which prompts can be one batch so that each has the answer that it has alone; tried once.

    Args:
        model: a causal language model, with an adapter or not.

    Raises:
        InputError: it does not generate at all.
    """
    found: Together | None = getattr(model, _TOGETHER_BY, None)
    if found is None:
        found = _answers_together(model) if is_here(model) else "padded"
        setattr(model, _TOGETHER_BY, found)
    return found


def caches_right(model: Any) -> bool:
    """Whether a model that keeps keys and values while it generates goes on as without; tried once.

    Args:
        model: a causal language model that generates, with an adapter or not.

    Raises:
        InputError: what it generates is not what it finds likely, with them or without.
    """
    found: bool | None = getattr(model, _CACHES_BY, None)
    if found is None:
        found = not is_here(model) or _caches_right(model)
        setattr(model, _CACHES_BY, found)
    return found


def check_causal(role: str, model: PreTrainedModel) -> None:
    """Raise InputError where a model reads the tokens that it is to predict.

    Args:
        role: student or teacher, for the message.
        model: its states exposed. One that is not whole in this process is not tried.
    """
    if not is_here(model):
        return
    first, other, _ = documents(model)
    with torch.no_grad(), evaluation_mode(model):
        ours, theirs = (
            _states(model, [torch.cat([first[:-1], row[-1:]])])[:-1] for row in (first, other)
        )
    if _difference(ours, theirs) > _allowed(model, _TOGETHER):
        raise InputError(
            f"the {role}, a {type(model).__name__}, reads the tokens that it is to predict: it is "
            "an encoder, or its configuration lacks is_decoder; choose a causal language model"
        )


def documents(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids of two documents of one length and of one of another."""
    size = logits_of_model(model)
    lengths = (_LENGTHS[0], _LENGTHS[0], _LENGTHS[1])
    start, found = 0, []
    for length in lengths:
        numbers = torch.arange(start, start + length) * 7919
        found.append(min(_SPECIAL, size - 1) + numbers % max(1, size - _SPECIAL))
        start += length
    return found[0], found[1], found[2]


def padded(
    rows: Sequence[torch.Tensor], pad: int, *, before: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one batch, padding before or after them, and the mask that leaves it out."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        at = slice(longest - len(row), longest) if before else slice(len(row))
        ids[number, at], mask[number, at] = row, 1
    return ids, mask


def _states(model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The states (L, H) of rows, packed into one if there are several."""
    if len(rows) == 1:
        batch: dict[str, Any] = {"input_ids": rows[0][None]}
    else:
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        ids = torch.cat(list(rows)).tolist()
        batch = collate([{"input_ids": ids, "seq_lengths": [len(row) for row in rows]}])
        batch.pop("labels")
    return _run(model, batch)[0]


def _run(model: PreTrainedModel, batch: Mapping[str, Any]) -> torch.Tensor:
    """The states (B, L, H) of a batch."""
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
    states: States = model(**inputs, use_cache=False, with_states=lambda states: states)
    return states.hidden.float()


def _answers_together(model: Any) -> Together:
    long, other, short = documents(model)
    try:
        caches_right(model)
        alone = [_first_logits(model, [prompt])[0] for prompt in (long, short)]
    except InputError:
        raise
    except _FAILURES as error:
        raise InputError(
            f"{type(model).__name__} does not generate ({type(error).__name__}: "
            f"{first_paragraph(error)}), which this run asks for"
        ) from error
    if _agree(model, [long, short], alone):
        return "padded"
    return "of one length" if _agree(model, [long, other], alone[:1]) else "alone"


def _caches_right(model: Any) -> bool:
    prompt, _, _ = documents(model)
    ids = torch.cat([prompt, torch.tensor([_SPECIAL])])[None].to(next(model.parameters()).device)
    with torch.no_grad(), evaluation_mode(model):
        wanted = model(input_ids=ids, use_cache=False).logits[0, -2:].float()
    differences = []
    for use_cache in (True, False):
        found = _first_logits(model, [prompt], use_cache)[0]
        differences.append(_difference(found, wanted))
        if differences[-1] <= _allowed(model, _APART):
            return use_cache
    raise InputError(
        f"{type(model).__name__} generates from other logits than it gives for the same tokens "
        f"(they differ by {min(differences):.1%} of their size), and this run asks for answers"
    )


def _agree(model: Any, prompts: Sequence[torch.Tensor], alone: Sequence[torch.Tensor]) -> bool:
    """Whether the first of some prompts have the same logits as alone."""
    try:
        together = _first_logits(model, prompts)
    except _FAILURES:
        return False
    allowed = _allowed(model, _APART)
    return all(
        _difference(ours, theirs) <= allowed for ours, theirs in zip(together, alone, strict=False)
    )


def _first_logits(
    model: Any, prompts: Sequence[torch.Tensor], use_cache: bool | None = None
) -> torch.Tensor:
    """The logits (B, 2, V) of the first two tokens of each answer, of which the first is given."""
    device = next(model.parameters()).device
    ids, mask = padded(prompts, 0, before=True)
    config = GenerationConfig(
        max_new_tokens=2,
        min_new_tokens=2,
        use_cache=caches_right(model) if use_cache is None else use_cache,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        # Of near-equal tokens, rounding must not choose: the answer is always this one.
        suppress_tokens=[token for token in range(logits_of_model(model)) if token != _SPECIAL],
    )
    with torch.no_grad(), evaluation_mode(model), generation_settings(model, config):
        found = cast("Any", model).generate(
            input_ids=ids.to(device), attention_mask=mask.to(device)
        )
    return torch.stack(list(found.logits), dim=1).float()


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number; infinite where one is NaN."""
    share = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    return share if share == share else float("inf")


def _allowed(model: PreTrainedModel, tolerances: tuple[float, float]) -> float:
    wide = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    quantized = getattr(model, "hf_quantizer", None) is not None
    return tolerances[0] if wide and not quantized and not needs_half(model) else tolerances[1]
