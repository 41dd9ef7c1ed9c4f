# `make help` lists the targets. Everything runs in .venv, which is created on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --editable

.PHONY: help quickstart test test-fast experiments quality style dist docs
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

quickstart: $(VENV)/.installed  ## install, then run the quickstart
	$(BIN)/hf-unlearn quickstart

test: $(VENV)/.installed-test  ## run all tests
	$(PYTEST)

test-fast: $(VENV)/.installed-test  ## run the tests that are not marked slow
	$(PYTEST) -m "not slow"

experiments: $(VENV)/.installed  ## run the experiments behind the committed results
	$(BIN)/python recipes/experiments/run_all.py

quality: $(VENV)/.installed-dev  ## check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

style: $(VENV)/.installed-dev  ## repair lint and format, and write the datasheets of the methods and the notebook
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -c "from hf_unlearn.methods.datasheets import FILE, as_json; FILE.write_text(as_json(), encoding='utf-8')"
	$(BIN)/python docs/notebook.py

docs: $(VENV)/.installed-dev  ## build the site into site/, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

dist: $(VENV)/.installed-dev  ## build the wheel and the sources into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# An installation is repeated only when pyproject.toml changes: each leaves a stamp file in .venv.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) '.[test]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) '.[dev]'
	@touch $@
