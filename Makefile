# Every command makes what it needs, once: the environment in .venv, then the package, then the test tools.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# a new folder each time: nothing of an earlier run is overwritten
OUT := $(or $(OUT),runs/quickstart-$(shell date +%Y%m%d-%H%M%S))
MAPS := --maps gradcam --maps layercam --maps cam --maps guidedbackprop
DEVICE ?= auto
JOBS ?= auto

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-fast check bench fuzz clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON): expected Python 3.11 or newer, got $$($(PYTHON) -V 2>&1). Pass another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(BIN)/python
	@echo "Installing the package and its dependencies into $(VENV) (torch is large: a few minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@echo "Compiling (once)"
	@$(BIN)/python -c "from wsod.metrics.warmup import warm_up; warm_up()"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

install: $(VENV)/.installed  ## the package in .venv

quickstart: $(VENV)/.installed  ## train on the embedded data, fine-tune with ATCON, evaluate both, one table
	@echo "1/4 training: a supervised start, then ATCON"
	@$(BIN)/atcon finetune --recipe quickstart --out $(OUT) --device $(DEVICE)
	@echo "2/4 evaluating the start"
	@$(BIN)/wsod evaluate $(MAPS) --maps center --checkpoint $(OUT)/start.pt --out $(OUT)/start --device $(DEVICE) --quiet
	@echo "3/4 evaluating the fine-tuned checkpoint"
	@$(BIN)/wsod evaluate $(MAPS) --checkpoint $(OUT)/ft.pt --out $(OUT)/atcon --save-overlays 12 --device $(DEVICE) --quiet
	@echo "4/4 both together"
	@$(BIN)/wsod table $(OUT)/start $(OUT)/atcon
	@echo "pictures: $(OUT)/atcon/overlays"

test: $(VENV)/.installed-test  ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS)

test-fast: $(VENV)/.installed-test  ## the tests that take less than two minutes in all
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

check: $(VENV)/.installed-test  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test  ## every benchmark, ours over the peers': runs/benchmarks/benchmarks.md and .json
	$(BIN)/python benchmarks/run.py $(BENCH)

FUZZ_SECONDS ?= 600

fuzz: $(VENV)/.installed-test  ## coverage-guided fuzzing of every parser, ten minutes each
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	@for parser in $$($(BIN)/python -m tests.fuzz.run); do echo "== $$parser"; $(BIN)/python -m tests.fuzz.run $$parser $(FUZZ_SECONDS) || exit 1; done

clean:  ## remove what the other commands made (not your runs)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
