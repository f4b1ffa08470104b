# Requirements: Python 3.11 or newer, and make. Every target installs what it needs.
#
#   make demo    install, start the servers, run the recipe `town`, print the report and the addresses
#   make test    tests              make check   ruff, mypy --strict, the architecture test, docs, audit of dependencies
#   make test-fast   tests without server, browser or training: under two minutes
#   make test-long   slow tests, minutes each: production profile, deployments in a browser, waiting runs, processes
#   make chaos   chaos tests: kill a pipeline, its worker and its servers at random moments; takes minutes
#   make docs    the documentation site, into site/
#   make audit   check the pinned packages for known vulnerabilities; skipped if PyPI cannot be reached
#   make up      start the servers  make down    stop them          make clean   remove build and cache files

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
LABEL_STUDIO := .venv-label-studio
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LABEL_STUDIO_READY := $(LABEL_STUDIO)/.ready
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: demo test test-fast test-long chaos check docs audit format up down status setup browser clean distclean

demo: setup
	$(BIN)/rlhf up
	$(BIN)/rlhf run town
	$(BIN)/rlhf report
	$(BIN)/rlhf status

test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
		-m "not server and not browser and not slow and not long and not chaos"

test-long: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m long

chaos: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -n 2 --dist load -m chaos tests/chaos

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory audit

# pip-audit does not fail if its service is unusable, so audit.py first queries a release with a known vulnerability.
# Without a network the audit is skipped, with a message and exit code 0.
audit: $(READY)
	@$(BIN)/python deploy/audit.py requirements.lock requirements-label-studio.lock

# The variable suppresses a notice that Material for MkDocs prints on every build.
# --quiet would also suppress the warnings that --strict turns into errors.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: setup
	$(BIN)/rlhf up

down:
	$(BIN)/rlhf down

status:
	$(BIN)/rlhf status

setup: $(READY) $(LABEL_STUDIO_READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is required; choose it with: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps -e .
	touch $@

# Label Studio's pinned dependencies conflict with Prefect's, so it has its own environment.
$(LABEL_STUDIO_READY): requirements-label-studio.lock
	test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python -m pip install $(PIP_FLAGS) -r requirements-label-studio.lock
	touch $@

browser:
	@if [ -z "$(BROWSER)" ]; then \
		echo "The browser tests need Chromium or Chrome and are skipped without it:"; \
		echo "'apt-get install chromium' on Debian, 'brew install --cask chromium' on macOS."; \
	fi

clean:
	-test -x $(BIN)/rlhf && $(BIN)/rlhf down
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find alignment flows labeling tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LABEL_STUDIO) .rlhf .bench
