# Everything sets itself up: Python 3.11 or newer and make are all that is needed beforehand.
#
#   make demo    install, start the servers, run the recipe `town`, print the report and the addresses
#   make test    tests              make check   ruff, mypy --strict, the architecture test, docs, known faults of packages
#   make test-fast   what needs no server and no browser and takes seconds: under two minutes in all
#   make test-long   the production profile, deployments in a browser, waiting runs, several processes: minutes each
#   make chaos   kills a pipeline, its worker and its servers at random moments, for minutes
#   make docs    the documentation site, into site/
#   make audit   known faults of the packages that are installed, where PyPI's service for them can be reached
#   make up      start the servers  make down    stop them          make clean   remove what can be made again

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

# `pip-audit` counts a package that its service does not know as well, so the service is asked for one with a known fault
# first. Without a network this says that nothing was looked at, and fails nothing.
audit: $(READY)
	@$(BIN)/python deploy/audit.py requirements.lock requirements-label-studio.lock

# Material for MkDocs prints a notice about its own end of life on every build unless this variable is set.
# Not --quiet: it would keep warnings from --strict as well.
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
		|| { echo "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps -e .
	touch $@

# Label Studio pins versions that Prefect cannot live with, so it has an environment of its own.
$(LABEL_STUDIO_READY): requirements-label-studio.lock
	test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python -m pip install $(PIP_FLAGS) -r requirements-label-studio.lock
	touch $@

browser:
	@if [ -z "$(BROWSER)" ]; then \
		echo "The browser tests need Chromium or Chrome: 'apt-get install chromium' on Debian,"; \
		echo "'brew install --cask chromium' on a Mac; without one they are skipped."; \
	fi

clean:
	-test -x $(BIN)/rlhf && $(BIN)/rlhf down
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find alignment flows labeling tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LABEL_STUDIO) .rlhf .bench
