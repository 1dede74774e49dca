"""A model, a tokenizer, prepared rows: each as one short text that changes when they do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from amidmath.integrations.common.errors import InputError

# Of a config, what changes without a change to the model.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
_CONFIGS = ("config.json", "adapter_config.json")
_ROWS = 1000


def of_model(folder: Path) -> str:
    """The fingerprint of a model: its configuration, and the bytes of its safetensors files.

    A hub model and a copy of it have the same one; so have copies under other names. The same
    weights in another dtype, or in another number of files, have not. Of an adapter's folder it is
    the adapter and the name of its base.

    Args:
        folder: a local folder, or a hub model's snapshot.

    Raises:
        InputError: no configuration, or no weights.
    """
    configs = [folder / name for name in _CONFIGS if (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    if not configs or not weights:
        raise InputError(f"{folder} holds no model with safetensors weights and a config.json")
    digest = hashlib.sha256()
    for path in configs:
        config = json.loads(path.read_text("utf-8"))
        _add(digest, path.name, {k: v for k, v in config.items() if k not in _NOT_THE_MODEL})
    for path in weights:
        with path.open("rb") as file:
            _add(digest, path.name, hashlib.file_digest(file, "sha256").hexdigest())
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> str:
    """The fingerprint of a tokenizer: its vocabulary, special tokens and chat template.

    Args:
        tokenizer: one of transformers'.
    """
    digest = hashlib.sha256()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    _add(digest, "vocabulary", vocabulary)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    _add(digest, "special", special)
    _add(digest, "template", tokenizer.chat_template)
    return digest.hexdigest()


def of_rows(rows: Dataset) -> str:
    """The fingerprint of prepared rows: their tokens, labels and the bounds of packed documents.

    Args:
        rows: with the columns ``input_ids`` and ``labels``, in the order of their numbers.
    """
    columns = [c for c in ("input_ids", "labels", "seq_lengths") if c in rows.column_names]
    digests = {(c, part): hashlib.sha256() for c in columns for part in ("values", "lengths")}
    tables: Any = rows.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS)
    for table in tables:
        for name in columns:
            lists = table.column(name).combine_chunks()
            for part, array in (("values", lists.flatten()), ("lengths", lists.value_lengths())):
                numbers = array.to_numpy(zero_copy_only=False).astype("<i8", copy=False)
                digests[name, part].update(np.ascontiguousarray(numbers).data)
    whole = hashlib.sha256()
    for (name, part), digest in digests.items():
        _add(whole, f"{name} {part}", digest.hexdigest())
    _add(whole, "rows", len(rows))
    return whole.hexdigest()


def _add(digest: Any, name: str, content: Any) -> None:
    """Add what JSON can say, after its name, so that neither runs into the other."""
    digest.update(json.dumps([name, content], sort_keys=True).encode() + b"\n")
