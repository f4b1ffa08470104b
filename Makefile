# Requirements: Python 3.11 or newer, and make. Every target installs what it needs.
#
#   make demo    install, start the servers, run the recipe `town`, print the report and the addresses
#   make test    tests              make check   ruff, mypy --strict, the architecture test, docs, audit of dependencies
#   make test-fast   tests without server, browser or training: under two minutes
#   make test-long   slow tests, minutes each: production profile, deployments in a browser, waiting runs, processes
#   make chaos   chaos tests: kill a pipeline, its worker and its servers at random moments; takes minutes
#   make docs    the documentation site, into site/
#   make audit   check the pinned packages for known vulnerabilities; skipped if PyPI cannot be reached, an error then
#                with AUDIT_REQUIRED=1
#   make lock    pin the newest fitting versions of new dependencies, with hashes; all others stay as they are
#   make release     sdist, wheel, SBOM and licences, with their SHA-256, into dist/
#   make images-pin  pin the images of deploy/ by digest; needs docker and the registries
#   make up      start the servers  make down    stop them          make clean   remove build and cache files

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
LABEL_STUDIO := .venv-label-studio
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LABEL_STUDIO_READY := $(LABEL_STUDIO)/.ready
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
TOOLS := .venv-release
TOOLS_READY := $(TOOLS)/.ready
# A lock names every package, so pip resolves nothing, and accepts only files with a hash of the lock.
PIP := -m pip install --quiet --disable-pip-version-check --no-deps
LOCKED := $(PIP) --require-hashes -r
COMPILE := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"
TORCH_CPU ?= https://download.pytorch.org/whl/cpu/torch/
AUDIT_REQUIRED ?=
UNPINNED_IMAGES ?=

.PHONY: demo test test-fast test-long chaos check docs audit lock release images-pin format up down status setup browser clean distclean

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
# Without a network the audit is skipped, with a message and exit code 0; AUDIT_REQUIRED=1 makes that an error.
audit: $(READY)
	@$(BIN)/python deploy/audit.py $(if $(filter-out 0,$(AUDIT_REQUIRED)),--require) \
		requirements.lock requirements-torch.lock requirements-label-studio.lock requirements-release.lock

# uv keeps the versions in a lock that still fit. The CPU build of torch only tells uv that no CUDA library is needed.
lock: $(TOOLS_READY)
	$(COMPILE) pyproject.toml deploy/locks/torch-cpu.in --extra corpus --extra gguf --extra s3 --extra dev --extra docs --find-links $(TORCH_CPU) --no-emit-package torch \
		-o requirements.lock
	$(COMPILE) deploy/locks/torch.in --constraint requirements.lock -o requirements-torch.lock
	$(COMPILE) deploy/locks/label-studio.in -o requirements-label-studio.lock
	$(COMPILE) deploy/locks/release.in -o requirements-release.lock

# The images come last: what else is wrong is seen first.
release: setup $(TOOLS_READY)
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(TOOLS)/bin/python -m build --no-isolation --outdir dist .
	$(TOOLS)/bin/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.cdx.json
	$(TOOLS)/bin/cyclonedx-py environment $(LABEL_STUDIO) --output-reproducible \
		--output-file dist/sbom-label-studio.cdx.json
	$(BIN)/python deploy/licences.py $(TOOLS)/bin/pip-licenses $(VENV) $(LABEL_STUDIO) > dist/licences.csv
	cd dist && sha256sum * > SHA256SUMS
	$(BIN)/python deploy/images.py $(if $(UNPINNED_IMAGES),--warn)

images-pin: $(READY)
	$(BIN)/python deploy/images.py --pin

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

$(READY): requirements.lock requirements-torch.lock requirements-torch-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is required; choose it with: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(LOCKED) requirements.lock
	$(BIN)/python $(LOCKED) requirements-torch-cpu.lock \
		|| { echo "No CPU build of torch is at hand: installing PyPI's"; $(BIN)/python $(LOCKED) requirements-torch.lock; }
	$(BIN)/python $(PIP) --no-build-isolation -e .
	touch $@

# Label Studio's pinned dependencies conflict with Prefect's, so it has its own environment.
$(LABEL_STUDIO_READY): requirements-label-studio.lock
	test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python $(LOCKED) requirements-label-studio.lock
	touch $@

$(TOOLS_READY): requirements-release.lock
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(LOCKED) requirements-release.lock
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
	rm -rf $(VENV) $(LABEL_STUDIO) $(TOOLS) .rlhf .bench
