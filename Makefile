# On a fresh machine, run `make demo` or `make test`; `make` alone lists all commands.
# Paths are relative, so that a folder name with spaces works.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The newest one that starts: a pyenv shim on the PATH may fail.
IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c '$(IS_SUPPORTED)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
endif

VENV := .venv
PY := $(VENV)/bin/python
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
BENCH := $(VENV)/.installed-bench
DOCS := $(VENV)/.installed-docs
PIP := $(PY) -m pip --disable-pip-version-check --no-input
PACKAGES := $(wildcard reliable_celery messaging allocation tasks local testing celeryconfig.py flowerconfig.py benchmarks examples scripts)
BATCHES ?= data/batches.csv
ORDERS ?= data/orders.csv
PURCHASES ?= data/purchases.csv
# Seed of the random tests; `make test SEED=…` repeats a run.
SEED := $(or $(SEED),$(shell od -An -N3 -tu4 /dev/urandom | tr -d ' '))

.PHONY: help demo up drill test test-containers check format clean docs docs-site bench bench-full soak chaos chaos-cluster simulate demo-vip

help: ## list these commands
	@echo "make demo [BATCHES=FILE ORDERS=FILE]   run real orders through real servers, then stop them"
	@echo "make up       run everything: servers, workers, beat, Flower, mail catcher (Ctrl-C stops)"
	@echo "make drill    stop the mail server of a running make up until Ctrl-C, to practise docs/how-to/operating.md"
	@echo "make test [SEED=N]                     run all tests on their own servers; N repeats the random tests of a run"
	@echo "make test-containers [WRITE_DOCS=1]    test docs/how-to/on-a-server.md with this machine's Docker; 1 updates its figures"
	@echo "make bench    compare with other task queues (20 minutes); bench-full (an hour) and soak (two) update the page in docs/"
	@echo "make chaos    kill workers and servers under load, and compare what senders were told with the database"
	@echo "make chaos-cluster                     the same on real clusters: PostgreSQL with a standby, Sentinel, RabbitMQ"
	@echo "make simulate [SEED=N] [STEPS=N] [MINUTES=N] [REDIS=1]   run random schedules of every step; SEED repeats one"
	@echo "make demo-vip [PURCHASES=FILE]         run real purchases through the example project"
	@echo "make check    check lint, format, types, layer contracts, pinned versions, secrets"
	@echo "make docs     generate docs/asyncapi.yaml, the tables of settings and the Grafana dashboard from the code"
	@echo "make docs-site                         build the documentation into site/; warnings are errors"
	@echo "make format   format the code"
	@echo "make clean    remove the data folder (ALLOCATION_DATA_DIR, default .data)"

demo: $(RUN)
	$(PY) -m examples.demo --batches '$(BATCHES)' --orders '$(ORDERS)'

up: $(RUN)
	@$(PY) -m local

drill: $(RUN)
	@$(PY) -m local.drill

test: $(DEV)
	$(PY) -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder --hypothesis-seed=$(SEED) $(PYTEST_ARGS)

test-containers: $(DEV)
	$(PY) -m pytest tests/containers $(if $(WRITE_DOCS),--write-docs) $(PYTEST_ARGS)

check: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict $(PACKAGES)
	$(VENV)/bin/lint-imports
	$(PY) -m scripts.audit

format: $(DEV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: $(RUN)
	@$(PY) -m local.clean

docs: $(DEV)
	$(PY) -m allocation.contract
	$(PY) -m scripts.settings_page
	$(PY) -m scripts.dashboard

docs-site: $(DOCS)
	$(VENV)/bin/zensical build --clean --strict
	$(PY) -m scripts.check_site

bench: $(BENCH)
	$(PY) -m benchmarks

bench-full: $(BENCH)
	$(PY) -m benchmarks --full --write-docs

soak: $(BENCH)
	$(PY) -m benchmarks.soak --write-docs

chaos: $(DEV)
	$(PY) -m tests.chaos

chaos-cluster: $(DEV)
	$(PY) -m tests.cluster $(CLUSTER_ARGS)

simulate: $(DEV)
	$(PY) -m tests.simulation$(if $(REDIS), --redis)$(if $(filter command line environment,$(origin SEED)), --seed $(SEED))$(if $(STEPS), --steps $(STEPS))$(if $(MINUTES), --minutes $(MINUTES))

demo-vip: $(RUN)
	$(PY) -m examples.vip_customers.demo --purchases '$(PURCHASES)'

.PHONY: rebuild
rebuild:

$(VENV): $(RUN)

# A virtual environment does not start if it was copied or only partly created, or if its Python is gone after a
# system upgrade: it is recreated from scratch.
$(RUN): requirements.txt requirements-server.txt $(if $(shell $(PY) -c '$(IS_SUPPORTED)' >/dev/null 2>&1 && echo starts),,rebuild)
	@test -n '$(PYTHON)' || { echo "Python 3.11 or newer is required, but none was found on the PATH." \
		"Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c '$(IS_SUPPORTED)' 2>/dev/null || { echo "Python 3.11 or newer is required, but $(PYTHON) is" \
		"$$('$(PYTHON)' --version 2>/dev/null || echo 'not a program that starts'). Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks its venv module." \
		"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PY) -c '$(IS_SUPPORTED)' >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	$(PIP) install --quiet -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt $(RUN)
	$(PIP) install --quiet -r requirements-dev.txt
	@touch $@

$(BENCH): requirements-bench.txt $(RUN)
	$(PIP) install --quiet -r requirements-bench.txt
	@touch $@

$(DOCS): requirements-docs.txt $(RUN)
	$(PIP) install --quiet -r requirements-docs.txt
	@touch $@
