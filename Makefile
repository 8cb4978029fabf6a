# Everything people and CI run. The environment is made from constraints.txt and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# One place for every process started from here: no telemetry, no hub, no update checks.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false

# Two test workers with two torch threads each on two cores spin against each other: a step can take
# a hundred times longer.
check test nightly: export OMP_NUM_THREADS := 1

.PHONY: help setup format check test nightly docs run up down clean
help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with the pinned packages

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; found $$($(PYTHON) -V). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP) ## Lint, types, import contracts and the quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m 'not slow and not nightly and not gpu' -n 2 --dist loadgroup --no-loadscope-reorder

test: $(STAMP) ## Everything: lint, types, contracts, all tests, the demo included
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m 'not nightly and not gpu' -n 3 --dist loadgroup --no-loadscope-reorder

nightly: $(STAMP) ## What takes too long for every change: damaged inputs, repeated kills, outages, a team's servers
	$(BIN)/pytest -m nightly -n 2 --dist loadgroup --no-loadscope-reorder

docs: $(STAMP) ## The documentation as a site, in build/docs; a broken reference is an error
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "build/docs/index.html"

run: $(STAMP) ## The shipped demo, from raw data to a promoted model
	$(BIN)/rlhf run configs/demo.yaml

up: $(STAMP) ## Prefect, MLflow and workers on this machine, every flow deployed
	$(BIN)/rlhf up

down: ## End what `make up` started
	$(BIN)/rlhf down

clean: ## Remove the environment and caches; keeps runs and data
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
