# Each target does its own set-up: a virtual environment in .venv, with the versions of tests/constraints.txt.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
DEMO := demo

.DEFAULT_GOAL := help
.PHONY: help demo test check bench dist clean

help:  ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml tests/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=tests/constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -c 'import cv2' || \
		{ echo "error: OpenCV needs the system library libGL; on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0" >&2; exit 1; }
	@touch $@

demo: $(READY)  ## the whole job on the bundled pictures, in demo/
	mkdir -p $(DEMO)
	cd $(DEMO) && PATH="$(CURDIR)/$(BIN):$$PATH" bash ../tests/demo.sh

test: $(READY)  ## the tests
	$(BIN)/python -m pytest

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check dsgen tests
	$(BIN)/ruff check dsgen tests
	$(BIN)/mypy

bench: $(READY)  ## the measurements of the README
	$(BIN)/python tests/bench.py

dist: $(READY)  ## the wheel
	$(BIN)/python -m build --wheel

clean:  ## remove what the targets above made
	rm -rf $(VENV) $(DEMO) bench build dist .pytest_cache .ruff_cache .mypy_cache
