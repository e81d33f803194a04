# Every target sets up what is missing: a virtual environment in .venv, with this package and its tools in it.
# PYTHON=/path/to/python3 chooses the interpreter it is made from. All paths are relative: the checkout may lie anywhere.

PYTHON ?= python3
JOBS ?= 2
# Tests run in another order every time; the first line of the output says which: SEED=1234 repeats it.
SEED ?= default
BIN := .venv/bin
INSTALLED := .venv/.installed
# nnunet_ssl/trainers and nnunet_ssl/planners are links to top-level folders; pyproject.toml has ruff skip the links.
# Waiting threads give their core to those who have something to do; see benchmarks/LOG.md.
export OMP_WAIT_POLICY ?= PASSIVE
SOURCES := .ci setup.py nnunet_ssl trainers planners tests benchmarks docs examples

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast check lint types format docs site constraints versions clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "make %-11s %s\n", $$1, $$2 }'

install: $(INSTALLED) ## the virtual environment .venv, with uv where it is on the PATH, else with pip

demo: $(INSTALLED) ## pre-train, fine-tune and compare on synthetic images; the page is demo/report.html
	$(BIN)/python -m nnunet_ssl.demo.run --output demo

test: $(INSTALLED) ## all tests, in two processes (JOBS=1 for one), in a new order (SEED=N for that one)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --randomly-seed=$(SEED)

test-fast: $(INSTALLED) ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --randomly-seed=$(SEED) -m "not slow"

check: lint types test ## formatting, lint, types and all tests

lint: $(INSTALLED) ## formatting and lint
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: $(INSTALLED) ## static types
	$(BIN)/mypy

format: $(INSTALLED) ## rewrite the sources in the project's format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(INSTALLED) ## pages and tables that come from the code (docs/make_pictures.py makes the pictures)
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_gpu_times.py
	$(BIN)/python docs/make_layouts.py
	$(BIN)/python docs/make_mistakes.py

site: $(INSTALLED) ## the docs site, from build/site/index.html on, without a network; links that lead nowhere are errors
	$(BIN)/python -m sphinx -q --fail-on-warning --keep-going -c docs -d build/site_cache . build/site

constraints: $(INSTALLED) ## the versions in .venv into constraints.txt, after its tests have passed
	$(BIN)/python .ci/freeze.py

versions: $(INSTALLED) ## quick tests with the oldest and newest versions we promise, as users install them
	$(BIN)/python .ci/versions.py

clean: ## remove everything that make made
	rm -rf .venv build demo first_steps nnunet_ssl.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter is gone is made again; a new setup.cfg is installed into the one that is there.
$(INSTALLED): setup.cfg setup.py pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo 'Python 3.10 or newer is needed; found:' >&2; "$(PYTHON)" --version >&2; \
	  echo 'Name another one: make PYTHON=/path/to/python3 ...' >&2; exit 1; }
	@if command -v uv > /dev/null; then \
	  set -ex; \
	  $(BIN)/python -c '' 2> /dev/null || uv venv --clear --python "$(PYTHON)" .venv; \
	  uv pip install --python $(BIN)/python --compile-bytecode --reinstall-package nnunet_ssl -e '.[dev]'; \
	else \
	  "$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null || { \
	    echo 'This Python cannot make virtual environments. Install its venv module (Debian, Ubuntu: apt install' >&2; \
	    echo 'python3-venv), or uv (https://docs.astral.sh/uv), or name another: make PYTHON=/path/to/python3 ...' >&2; \
	    exit 1; }; \
	  set -ex; \
	  $(BIN)/python -m pip --version > /dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv; \
	  $(BIN)/python -m pip install -e '.[dev]'; \
	fi
	@touch $@
