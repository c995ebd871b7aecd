# Each target makes what it needs: `make quickstart` on a fresh clone creates the environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when first imported: compiling all of torch first costs half a minute of a quickstart.
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
TORCH_CPU := https://download.pytorch.org/whl/cpu
QUICKSTART := examples/quickstart
OUT ?= runs/quickstart

.PHONY: help setup quickstart test check format constraints build clean

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 20

setup: $(DEV) ## environment with limbeck, the embedded model and the developer's tools

quickstart: $(RUN) ## tens of labels to a distilled student and a verdict, in minutes on two cores
	@$(BIN)/limbeck run --labels $(QUICKSTART)/labels.jsonl --output label --test $(QUICKSTART)/test.jsonl \
		--unlabeled $(QUICKSTART)/unlabeled.jsonl --teacher embedded --student embedded --effort quick --out $(OUT)

test: $(DEV) ## all tests, offline, a process a core
	@$(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile

check: $(DEV) ## what CI runs beside the tests: lint, format, types, import layers, the docs' blocks
	@echo "ruff: lint" && $(BIN)/ruff check --quiet .
	@echo "ruff: format" && $(BIN)/ruff format --check --quiet .
	@echo "pyright: strict types" && $(BIN)/pyright --warnings
	@echo "import-linter: layers" && $(BIN)/lint-imports --no-logo
	@echo "docs: run their blocks" && $(BIN)/python -m pytest -q tests/test_docs.py

format: $(DEV) ## format the code and mend what lint can mend
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

constraints: $(DEV) ## pin the versions that are installed now
	@$(BIN)/python scripts/constraints.py > constraints.part && mv constraints.part constraints.txt

build: $(DEV) ## wheel and sdist in dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## remove the environment and build leftovers; runs/ stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "limbeck needs Python 3.11 or newer: make PYTHON=python3.12 setup" >&2; exit 1; }
	@echo "setup: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Without an NVIDIA driver the CPU build of torch saves gigabytes; where its index does not answer, PyPI's is taken.
$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: installing torch"
	@index=""; if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null \
		&& curl --silent --fail --location --max-time 5 --output /dev/null --head $(TORCH_CPU)/torch/; \
		then index="--extra-index-url $(TORCH_CPU)"; fi; $(PIP) $$index torch
	@echo "setup: installing limbeck and what it needs"
	@$(PIP) --editable .
	@echo "setup: fetching the embedded models"
	@$(BIN)/limbeck doctor --fix
	@touch $@

# Compiled here after all, as tests turn the compiler's warnings about others' code into errors.
$(DEV): $(RUN)
	@echo "setup: installing the developer's tools"
	@$(PIP) --editable '.[dev]'
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
