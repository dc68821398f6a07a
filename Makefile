# Short names for the `surround` command. Targets that need the environment make it first.
.PHONY: help demo teacher-cache train-student eval check lint test browser test-portable torture bench gpu
.DEFAULT_GOAL := help
# `make teacher-cache train-student eval` runs in this order, also with -j.
.NOTPARALLEL:

PYTHON ?= python3
RECIPE ?= demo
DEVICE ?= cuda
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
STAGE_ARGS = $(RECIPE) $(if $(DATA),--data "$(DATA)") $(if $(RUN),--run "$(RUN)") $(ARGS)
# Exit code 3: done, but some frames were quarantined. The command has listed them.
QUARANTINE_OK = || { code=$$?; [ $$code -eq 3 ] || exit $$code; }

help:           ## list targets in the order of use
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  stages take RECIPE=<name or path> [DATA=<data set folder>] [RUN=<run folder>] [ARGS=...]"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[openvino]'
	@touch $(READY)

$(READY_DEV): $(READY)
	$(PIP_INSTALL) -e '.[dev]'
	$(PIP_INSTALL) --no-deps nuscenes-devkit
	@touch $(READY_DEV)

demo:  ## all three stages on the embedded synthetic drives, with a report
	@echo "demo: about 6 minutes on two cores with fast bf16, longer without; the environment is 1.3 GB"
	@$(MAKE) --no-print-directory teacher-cache train-student eval RECIPE=demo

teacher-cache: $(READY)  ## stage 1: run the teacher once over every frame
	$(BIN)/surround teacher-cache $(STAGE_ARGS) $(QUARANTINE_OK)

train-student: $(READY)  ## stage 2: train the student from the cache and sparse LiDAR
	$(BIN)/surround train-student $(STAGE_ARGS)

eval: $(READY)  ## stage 3: measure the student and write the report
	$(BIN)/surround eval $(STAGE_ARGS) $(QUARANTINE_OK)

check: lint test  ## lint, types, tests

lint: $(READY_DEV)  ## lint and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Three processes on two cores: many tests wait for processes that they have started. The tests of a file stay
# together, so that its caches are made once.
test: $(READY_DEV)  ## all tests
	-@$(BIN)/python tests/support/chromium.py
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

browser: $(READY_DEV) ## fetch a Chromium for the tests of the report, if this machine has none
	@$(BIN)/python tests/support/chromium.py

# What other CPUs and settings would do, as far as this one can be made to: ATEN_CPU_CAPABILITY limits PyTorch's own
# kernels, ONEDNN_MAX_CPU_ISA those of oneDNN. Another Python: make test-portable VENV=.venv312 PYTHON=python3.12.
PORTABLE := "avx2 AVX2 1" "avx2 AVX2 4" "default AVX2 2"
test-portable: $(READY_DEV)  ## all tests with the instructions of older CPUs, and 1, 2 and 4 threads
	@for setting in $(PORTABLE); do set -- $$setting; \
	  echo "PyTorch's kernels: $$1, oneDNN's and OpenVINO's: $$2, threads: $$3; onnxruntime heeds neither"; \
	  ATEN_CPU_CAPABILITY=$$1 ONEDNN_MAX_CPU_ISA=$$2 OMP_NUM_THREADS=$$3 \
	    $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) || failed=1; \
	done; exit $${failed:-0}

torture: $(READY_DEV) ## kill stages, workers and schedulers at random moments, flip bytes, feed parsers broken files; long
	$(BIN)/python -m pytest -m torture -o addopts=--import-mode=importlib -n 2 -rP $(ARGS)

bench: $(READY_DEV) ## print speed, memory and size; assert nothing
	$(BIN)/python -m pytest -m bench -o addopts=--import-mode=importlib tests/benchmarks $(ARGS)

# A machine without network cannot make the environment: a PYTHON of the command line is taken as it is.
ifeq ($(origin PYTHON),command line)
gpu: GPU_PYTHON := $(PYTHON)
else
gpu: GPU_PYTHON := $(BIN)/python
gpu: $(READY_DEV)
endif
gpu:            ## run on a CUDA GPU what wants one, in eight minutes; DEVICE=cpu tries every line
	$(GPU_PYTHON) tests/benchmarks/gpu.py --device $(DEVICE) --run "$(or $(RUN),runs/gpu)" $(ARGS)
