# Two commands to know: `make demo` plays the whole loop on this machine, `make test` proves it.
.DEFAULT_GOAL := help
.PHONY: help setup environment demo test lint bench clean crds format

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing here reports home, and nothing looks for models on the network.
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE := 1

# Which tests: unit needs nothing, apiserver the built programs, cluster and e2e also root.
LAYERS ?= unit apiserver cluster e2e
ROOT := $(if $(filter cluster e2e,$(LAYERS)),.ci/as-root)
DEMO_ROOT := $(if $(filter existing,$(SLUICE_CLUSTER)),,.ci/as-root)
# Some layers may run on two workers; the local cluster is one, with fixed addresses.
SHARED := $(filter unit apiserver,$(LAYERS))
ALONE := $(filter cluster e2e,$(LAYERS))
PREPARED := $(if $(filter-out unit,$(LAYERS)),setup,environment)

help: ## Show the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

setup: ## Install all that is needed (about 15 GB of disk, 25 minutes the first time)
	@.ci/setup

environment:
	@.ci/setup environment

demo: setup ## The whole loop, once, on real parts (SLUICE_CLUSTER=existing for a cluster of your own)
	@$(DEMO_ROOT) $(BIN)/sluice-dev demo

test: $(PREPARED) lint ## Lint, then all tests, cheapest first (LAYERS="unit apiserver" for some)
ifneq ($(SHARED),)
	@$(ROOT) $(BIN)/python -m pytest --layers="$(SHARED)" --numprocesses=2 --dist=loadfile --no-loadscope-reorder
endif
ifneq ($(ALONE),)
	@$(ROOT) $(BIN)/python -m pytest --layers="$(ALONE)"
endif

lint: environment ## Formatting, lint, types, borders between the rooms, generated files
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m sluice_contracts.crd check

format: environment ## Put the code into shape
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

crds: environment ## Write crds/ and the chart's copies anew
	$(BIN)/python -m sluice_contracts.crd write

bench: setup ## Measure, each figure beside a peer's (results in benchmarks/results/)
	$(BIN)/python -m benchmarks

clean: ## Stop the cluster; remove the environment and everything made here (built programs stay in the cache)
	@if [ -x $(BIN)/sluice-dev ]; then .ci/as-root $(BIN)/sluice-dev down; fi
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-output demo-report.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
