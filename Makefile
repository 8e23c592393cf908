# make figure-3    reproduce Figure 3; ARGS="--preset quick" passes options on
# make test        lint and the tests; ARGS="-k analog" passes options on
# make test-all    the same with the slow tests
# make lint | benchmark | clean
#
# Each makes .venv first if it is missing or older than the declared dependencies. Needed: Python 3.11 or newer.

# One exact release: what a bare `torch` gets depends on the machine. Another: make clean, then make TORCH=...
TORCH ?= torch==2.13.0
# aihwkit without its own requirements: it asks for torchvision, whose CUDA build breaks `import transformers`
# beside a CPU build of torch. What it imports is among the dependencies in pyproject.toml.
AIHWKIT ?= aihwkit>=1.1,<2
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

RUN := .venv/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install
INSTALLED := .venv/installed

.PHONY: figure-3 test test-all lint benchmark install clean
.DEFAULT_GOAL := test

figure-3: $(INSTALLED)
	$(RUN) paper_repro.py --figure 3 $(ARGS)

test: lint
	$(RUN) -m pytest -q $(ARGS)

test-all: lint
	$(RUN) -m pytest -q -m "slow or not slow" $(ARGS)

lint: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

benchmark: $(INSTALLED)
	$(RUN) benchmarks/analog_experts.py $(ARGS)
	$(RUN) benchmarks/noise_table.py $(ARGS)

install: $(INSTALLED)

# The stamp comes last: an environment without one was never finished and is made anew.
$(INSTALLED): pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; if you have it: make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into .venv: about 2 GB, some minutes"
	test -e $@ || "$(PYTHON)" -m venv --clear .venv
	$(PIP) "$(TORCH)"
	$(PIP) --quiet --editable ".[dev]"
	@# Wheels exist for Linux on x86-64 only.
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		set -x; $(PIP) --quiet --no-deps --only-binary aihwkit "$(AIHWKIT)"; \
	else echo "aihwkit has no wheel for $$(uname -sm): the comparison with it is left out"; fi
	@touch $@

clean:
	rm -rf .venv build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
