# The manual: `make train` and `make test` each do all set-up, then their job. Any Python 3.11-3.13 serves; no GPU needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test unit lint types bench bench-data kernels gpu clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

$(VENV)/locked: requirements.lock
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "mlaan needs Python 3.11 to 3.13, but $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "setting up $(VENV) (about two minutes, once)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

# The editable install builds the native operators; it is repeated when what it builds from has changed.
$(VENV)/installed: $(VENV)/locked pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*)
	@echo "building the native operators (where nvcc is found their CUDA forms too, a minute or two more)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'from mlaan_kernels.library import status; [print(f"native {s.name} operators {s.state}: {s.detail}") for s in status() if s.state != "loaded"]'
	@touch $@

setup: $(VENV)/installed  ## environment, locked dependencies, native operators, the package

train: setup  ## train ResNet-20 with MLAAN on real images; ARGS="--train.epochs 5" changes any setting
	@$(BIN)/mlaan train $(ARGS)

test: setup lint types unit  ## lint, types and all tests

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.cpp csrc/*.cu csrc/*.h)
	@$(BIN)/lint-imports

types: setup
	@$(BIN)/basedpyright --warnings

unit: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: setup  ## our schedule beside end-to-end, checkpointing and the two-path schedule, in one run
	@$(BIN)/python -m benchmarks.steps $(ARGS)

bench-data: setup  ## how fast training images arrive: torchvision with Pillow, ours, packed and DALI, in one run
	@$(BIN)/python -m benchmarks.data $(ARGS)

kernels: setup  ## compile every Triton kernel for sm_80 and sm_90 and refresh docs/kernels.md; no GPU needed
	@env -u TRITON_INTERPRET $(BIN)/python -m benchmarks.resources --write $(ARGS)

gpu:  ## the standard round on a GPU machine: its own torch, no network
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

clean:  ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info engine/*.egg-info kernels/mlaan_kernels/lib
