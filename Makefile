# A thin skin over the `surround` command. Every target that needs it makes the environment first.
.PHONY: help demo test browser lint check bench gpu torture teacher-cache train-student eval
.DEFAULT_GOAL := help
# `make teacher-cache train-student eval` is an order, also under -j.
.NOTPARALLEL:

PYTHON ?= python3
RECIPE ?= demo
DEVICE ?= cuda
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STAGE_ARGS = $(RECIPE) $(if $(DATA),--data "$(DATA)") $(if $(RUN),--run "$(RUN)") $(ARGS)
# Exit code 3 is success with some frames quarantined; the list was printed.
QUARANTINE_OK = || { code=$$?; [ $$code -eq 3 ] || exit $$code; }

help:           ## list targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  stages take RECIPE=<name or path> [DATA=<data set folder>] [RUN=<run folder>] [ARGS=...]"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps nuscenes-devkit
	@touch $(READY)

demo: $(READY)  ## environment, weights, the three stages on the embedded synthetic drive, report
	@$(MAKE) --no-print-directory teacher-cache train-student eval RECIPE=demo

teacher-cache: $(READY)  ## stage 1: run the teacher once over every frame
	$(BIN)/surround teacher-cache $(STAGE_ARGS) $(QUARANTINE_OK)

train-student: $(READY)  ## stage 2: train the student from the cache and sparse LiDAR
	$(BIN)/surround train-student $(STAGE_ARGS)

eval: $(READY)  ## stage 3: measure the student and write the report
	$(BIN)/surround eval $(STAGE_ARGS) $(QUARANTINE_OK)

# Three at a time on two cores: many tests wait for processes that they have started. A file stays together, so that
# its caches are made once.
test: $(READY)  ## all tests
	-@$(BIN)/python tests/chromium.py
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

browser: $(READY) ## a Chromium for the tests of the report, from the npm registry where this machine has none
	@$(BIN)/python tests/chromium.py

lint: $(READY)  ## lint and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check: lint test  ## lint, types, tests

bench: $(READY) ## print speed, memory and size; asserts nothing
	$(BIN)/python -m pytest -m bench -o addopts= tests/benchmarks $(ARGS)

# A machine without network cannot make the environment: a PYTHON of the command line is taken as it is.
ifeq ($(origin PYTHON),command line)
gpu: GPU_PYTHON := $(PYTHON)
else
gpu: GPU_PYTHON := $(BIN)/python
gpu: $(READY)
endif
gpu:            ## run on a CUDA GPU what wants one, in eight minutes; DEVICE=cpu tries every line
	$(GPU_PYTHON) tests/benchmarks/gpu.py --device $(DEVICE) --run "$(or $(RUN),runs/gpu)" $(ARGS)

torture: $(READY) ## kill stages, workers and schedulers at random moments, flip bytes, feed parsers broken files; long
	$(BIN)/python -m pytest -m torture -o addopts= -n 2 -rP $(ARGS)
