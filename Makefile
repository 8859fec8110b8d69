# Each target does its own set-up: a virtual environment in .venv, with the versions of tests/constraints.txt; test-lowest
# has another, with the oldest versions that pyproject.toml allows.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
PEERS := .venv-peers
LOWEST := .venv-lowest
LOWEST_PYTHON ?= python3.11
# one process a core; a file of tests stays in one process, since its tests share what they read
PARALLEL := --numprocesses auto --dist loadfile
DEMO := demo
SCORES := scores

.DEFAULT_GOAL := help
.PHONY: help demo scores test test-lowest check bench bench-peers dist clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

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
	cd $(DEMO) && PATH="$(CURDIR)/$(BIN):$$PATH" bash ../tests/scripts/demo.sh

scores: $(READY)  ## the scores of the README: labels 47,300 rows and trains on them, in scores/; two hours
	mkdir -p $(SCORES)
	cd $(SCORES) && PATH="$(CURDIR)/$(BIN):$$PATH" bash ../tests/scripts/scores.sh

test: $(READY)  ## the tests
	$(BIN)/python -m pytest $(PARALLEL)

test-lowest: $(LOWEST)/.ready  ## the tests, with Python 3.11 and the oldest versions allowed; 6 GB for an environment
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

# the oldest of what pyproject.toml names, and of what those need the newest that fits
$(LOWEST)/.ready: pyproject.toml
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

check: $(READY)  ## format, lint, types, and which package may import which
	$(BIN)/ruff format --check dsgen tests
	$(BIN)/ruff check dsgen tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(READY)  ## measure dsgen on this machine; --write in BENCH puts it into tests/benchmarks/README.md
	$(BIN)/python tests/benchmarks/bench.py $(BENCH)

bench-peers: $(PEERS)/.ready  ## dsgen beside other ways to keep and feed pictures; hours, and 6 GB for an environment
	$(PEERS)/bin/python tests/benchmarks/bench_peers.py $(BENCH)

$(PEERS)/.ready: pyproject.toml tests/constraints.txt tests/benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	PIP_CONSTRAINT=tests/constraints.txt $(PEERS)/bin/python -m pip install --quiet --editable ".[fast]"
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement tests/benchmarks/peers.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps ffcv==1.0.2 || \
		echo "FFCV is left out: to build it, apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev" >&2
	@touch $@

dist: $(READY)  ## the wheel
	$(BIN)/python -m build --wheel

clean:  ## remove what the targets above made
	rm -rf $(VENV) $(PEERS) $(LOWEST) $(DEMO) $(SCORES) bench build dist .pytest_cache .ruff_cache .mypy_cache
