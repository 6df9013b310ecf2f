# Everything runs in .venv, which `make setup` fills with a pinned set of packages.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
EXTRA ?= cpu
READY := $(VENV)/.ready-$(EXTRA)
CONFIG ?= configs/platform/complete_journey.yaml
BENCH ?= journey
PYTEST_ARGS ?=

export EXTRA TORCH_INDEX PYTHON

.PHONY: help setup lint format test test-slow demo bench run clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## create .venv; EXTRA=cuda for a GPU, TORCH_INDEX=URL to choose the build of torch

$(READY): pyproject.toml .ci/setup.sh $(wildcard .ci/requirements-*.txt)
	@.ci/setup.sh
	@touch $@

lint: setup ## style, format, types and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup lint ## lint, then the fast tests
	$(BIN)/pytest $(PYTEST_ARGS)

test-slow: setup ## the slow tests
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

demo: setup ## the whole story on Complete Journey, in minutes
	$(BIN)/hypercast demo

bench: setup ## measurements; BENCH="journey --json FILE"
	$(BIN)/python -m benchmarks $(BENCH)

run: setup ## the continual loop over CONFIG=PLATFORM.yaml
	$(BIN)/hypercast run $(CONFIG)

clean: ## remove .venv and everything that tools left behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
