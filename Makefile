# Every target makes its own environment first, so that each works on a fresh clone.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BENCH ?= .venv-bench
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile
ifdef GPUS
export GPUS
endif

.DEFAULT_GOAL := help
.PHONY: help setup test test-all test-lowest tables lint format demo sweep-comparison sweep-ablation sweep-today status benchmark figures clean

help:  ## show this list
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Begin
setup: $(READY)  ## make the environment in .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: python: 3.11 or newer is needed -> make PYTHON=python3.11 $@")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,dicom,onnx]'
	@touch $@

demo: $(READY)  ## five minutes on two cores: phantoms, two networks, a threshold, a report
	$(BIN)/python -m covidseg.cli.baseline recipe=demo name=demo
	$(BIN)/python src/train.py sweep=demo
	$(BIN)/python src/report.py table=demo

##@ Train and compare
sweep-comparison: $(READY)  ## Table I: all networks x tasks x seeds (x folds without a test set); GPUS=0,1,2 ARGS="data=folder ..."
	$(BIN)/python src/train.py sweep=comparison $(ARGS)

sweep-ablation: $(READY)  ## Table II: all block toggles x tasks x seeds (x folds)
	$(BIN)/python src/train.py sweep=ablation $(ARGS)

sweep-today: $(READY)  ## today's networks (MONAI's) beside COVID-SegNet x tasks x seeds (x folds)
	$(BIN)/python src/train.py sweep=today $(ARGS)

status: $(READY)  ## what each run of a sweep is doing
	$(BIN)/python src/status.py $(ARGS)

##@ Measure
benchmark: $(BENCH)/.ready  ## speed beside MONAI, TorchIO and nnU-Net, in an environment of its own; SUITE=loader for one part, gpu for a GPU, versus for accuracy
	$(BENCH)/bin/python src/benchmark.py $(or $(SUITE),all) $(ARGS)

$(BENCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@# torchvision comes along with nnU-Net, at times for another build of torch, and then no import of torchmetrics works
	$(BENCH)/bin/python -c 'import torchvision' 2>/dev/null || $(BENCH)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

##@ Change the suite
figures: demo  ## README's pictures, from the demo; needs Chromium
	$(BIN)/python docs/images/make.py

test: $(READY)  ## the default tests, a few minutes on two cores; JOBS=8 for more of them
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(READY)  ## the default tests and the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow or not slow' --durations=25

test-lowest:  ## the default tests on the lowest versions that pyproject.toml admits
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e '.[dev,dicom]'
	.venv-lowest/bin/python -m pytest

tables: $(READY)  ## write the tables of README, docs and experiments anew from what they are about
	$(BIN)/python -m covidseg.benchmark.tables

lint: $(READY)  ## ruff's rules and formatting, mypy's types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches; data and runs stay
	rm -rf $(VENV) $(BENCH) .venv-lowest build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
