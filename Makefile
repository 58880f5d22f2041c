# Two commands: `make quickstart` and `make test`. Both need Python 3.11 or newer and nothing else.
#   make quickstart ARGS="vars.run=runs/mine"   more arguments for `fac run`
#   make test PYTEST_ARGS="-k packing"          more arguments for pytest
#   make quickstart PYTHON=python3.12           another interpreter; VENV=/elsewhere another environment

VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt
STAMP_DEMO := $(VENV)/.installed-demo
STAMP_TEST := $(VENV)/.installed-test

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint docs clean

help:
	@sed -n '1,4p' Makefile

quickstart: $(STAMP_DEMO)
	@$(BIN)/fac run recipes/tiny/quickstart.yaml $(ARGS)

# pytest comes last, so that the closing line of `make test` is the count of tests.
test: lint docs
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP_TEST)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(STAMP_TEST)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "no Python 3.11 or newer with the venv module was found (tried python3, python3.13, python3.12, python3.11)." >&2; \
		echo "Install one (on Debian also its -venv package), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP_DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fac_lightning[demo] into $(VENV): one to three minutes"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(STAMP_TEST): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fac_lightning[demo,dev,docs,lora] into $(VENV): one to three minutes"
	@$(INSTALL) -e '.[demo,dev,docs,lora]'
	@$(INSTALL) --no-deps s3tokenizer encodec einops  # without what they ask for: torchaudio needs CUDA libraries
	@touch $(STAMP_DEMO) $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache
