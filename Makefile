# Everything people and CI run. The environment is made from constraints.txt and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A failure is shown when it happens, not after a quarter of an hour.
PYTEST := $(BIN)/pytest --instafail --dist loadgroup --no-loadscope-reorder

# uv installs in a quarter of pip's time, but knows none of pip's settings: where packages lie is read from them.
pip_setting = $$(printf '%s\n' "$$settings" | sed -n "s/^[^=]*[.]$(1)='\(.*\)'$$/\1/p" | head -n 1 | sed 's/\\n/ /g')
define FROM_PIP
settings=$$($(BIN)/pip config list); \
set -a; UV_INDEX_STRATEGY=unsafe-best-match; \
value="$(call pip_setting,index-url)"; [ -z "$$value" ] || UV_DEFAULT_INDEX=$$value; \
value="$(call pip_setting,extra-index-url)"; [ -z "$$value" ] || UV_INDEX=$$value; \
value="$(call pip_setting,find-links)"; [ -z "$$value" ] || UV_FIND_LINKS=$$(echo $$value | tr ' ' ,); \
value="$(call pip_setting,cert)"; [ -z "$$value" ] || SSL_CERT_FILE=$$value; set +a
endef
PACKAGES := --constraint constraints.txt --editable '.[dev]'

# All of it at once, on every core; what a run seldom imports is compiled when it is imported.
SELDOM := '/(tests?|altair|antlr4|apprise/plugins|asyncssh|celery|cfnlint|databricks|dateparser|distlib|docker|exporters|fontTools|graphql|gunicorn|$\
huggingface_hub/(cli|inference)|hydra|hypothesis|key_value|kombu|kubeflow_trainer_api/models|lm_eval/(models|tasks)|moto|mypyc?|nltk|numpy/distutils|oauthlib|openai|pip|pipelines|pipelining|playwright|$\
prompt_toolkit|pyasn1(_modules)?|pygments/lexers|rich_rst|scipy/signal|semconv|_vendor|$\
sklearn/(cluster|datasets|decomposition|ensemble|neighbors)|sqlalchemy/testing|sympy|$\
table_grapheme_overrides|torch/(_inductor|onnx|testing)|torchgen|transformers/models|virtualenv)/'

# One place for every process started from here: no telemetry, no hub, no update checks.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
# Images of containers set it; then each of a hundred processes compiles what it imports: a second for one with torch.
export PYTHONDONTWRITEBYTECODE :=

# Two test workers with two torch threads each on two cores spin against each other: a step can take
# a hundred times longer.
check test quick-tests all-tests nightly: export OMP_NUM_THREADS := 1

.PHONY: help setup format lint check test quick-tests all-tests nightly docs run up down clean
help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with the pinned packages

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; found $$($(PYTHON) -V). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt uv || true  # pip does it too
	@$(FROM_PIP); $(BIN)/uv pip install --quiet --python $(BIN)/python $(PACKAGES) || \
	  { echo "uv did not install the packages; pip does, which takes longer" >&2; \
	    $(BIN)/pip install --quiet --no-compile $(PACKAGES); }
	@$(BIN)/python -m compileall -q -j 0 -x $(SELDOM) $(VENV)/lib rlhf_core flows >/dev/null || true  # some are templates
	@touch $@

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## Format, lint, types and import contracts
	@echo "lint, types and import contracts:"
	@failed=; for tool in 'ruff format --check .' 'ruff check .' mypy lint-imports; do \
	  $(BIN)/$$tool || failed="$$failed  $$tool failed: read it above, after \"lint, types\"\n"; \
	done; printf "$$failed" >&2; [ -z "$$failed" ]

# Beside the tests, not before them: a wait of theirs costs nothing then. All of it is always shown.
BESIDE := @$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target lint

check: $(STAMP) ## Lint, types, import contracts and the quick tests
	$(BESIDE) quick-tests

test: $(STAMP) ## Everything: lint, types, contracts, all tests, the demo included
	$(BESIDE) all-tests

quick-tests: $(STAMP)
	+$(PYTEST) -m 'not slow and not nightly and not gpu' -n 2

all-tests: $(STAMP)
	+$(PYTEST) -m 'not nightly and not gpu' -n 4

nightly: $(STAMP) ## What takes too long for every change: damaged inputs, repeated kills, outages, a team's servers
	$(PYTEST) -m nightly -n 2

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
