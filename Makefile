# Every target sets itself up in .venv. The machine needs only Python 3.11 or newer, make and git.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CI     ?=
JOBS   ?= auto

# The start of the warning without a C++ compiler: the commands then run without the native kernels.
NOTICE := ignore:batchnorm runs without its native CPU kernels:RuntimeWarning

.DEFAULT_GOAL := help
.PHONY: help study play test test-without-compiler check lint types wheel gpu frameworks doctest examples docs pages bench clean

help:      ## what there is
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

study: $(VENV)/study.ready      ## what normalisation does for a network: a summary here, a page in study/
	@$(BIN)/batchnorm study $(ARGS)

PAGE := src/batchnorm/play/page
play:      ## build the page of `batchnorm play` with npm, and run its own tests
	@if ! command -v npm >/dev/null; then echo "make play: skipped, there is no npm here"; \
	elif ! (cd $(PAGE) && npm ci --no-audit --no-fund --loglevel=error >/dev/null); then \
	  echo "make play: skipped, npm cannot fetch the packages of the page here"; \
	else cd $(PAGE) && node build.mjs >/dev/null && npm test --silent; fi

test: $(VENV)/dev.ready             ## every test, in parallel; in CI also which lines of the package no test runs
	@$(BIN)/python -m pytest -n $(JOBS) $(if $(CI),--cov --cov-report=term-missing) $(ARGS)

# Left out: tests of pages, commands and studies, which compute no batch norms themselves, and of the native kernels.
COMPUTES_NOTHING := report play experiment doctor benchmark backends/native test_cli.py test_import.py
test-without-compiler: $(VENV)/dev.installed   ## the same on torch's operator and the reference, as without a C++ compiler
	@BATCHNORM_NATIVE=0 $(BIN)/python -m pytest -n $(JOBS) $(COMPUTES_NOTHING:%=--ignore=tests/%) $(ARGS)

check: play lint types test test-without-compiler wheel gpu frameworks doctest examples docs pages   ## everything that CI runs

lint: $(VENV)/dev.installed         ## ruff: lint and format; codespell
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell

types: $(VENV)/dev.installed        ## mypy
	@$(BIN)/mypy

wheel: $(VENV)/dev.ready            ## a wheel and an sdist: built in isolation, installed into an empty environment, tried
	@$(BIN)/python -m pytest -m packaging tests/test_packaging.py $(ARGS)

# Triton for torch's CPU build, in a separate folder: all other commands run as if it were not installed.
gpu: $(VENV)/dev.installed          ## the kernels for GPUs without one: interpreted against the oracle, and compiled
	@[ -d $(VENV)/triton/triton ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --constraint constraints.txt --target $(VENV)/triton triton || echo "make gpu: skipped, pip cannot install triton here"
	@[ ! -d $(VENV)/triton/triton ] || PYTHONPATH=$(CURDIR)/$(VENV)/triton TRITON_INTERPRET=1 BATCHNORM_NATIVE=0 \
	  BATCHNORM_COMPILE=1 $(BIN)/python -m pytest -n $(JOBS) tests/backends/triton $(ARGS)

# Training frameworks, also in a separate folder, and without their requirements, which would install another torch.
FRAMEWORKS := tests/integrations/frameworks
frameworks: $(VENV)/dev.ready       ## the callbacks in the frameworks themselves, on two ranks too
	@cmp -s $(FRAMEWORKS).txt $(VENV)/frameworks/installed || { rm -rf $(VENV)/frameworks; \
	  $(PIP) --no-deps --target $(VENV)/frameworks --requirement $(FRAMEWORKS).txt \
	  && cp $(FRAMEWORKS).txt $(VENV)/frameworks/installed; } || echo "make frameworks: skipped, pip cannot install them here"
	@[ ! -f $(VENV)/frameworks/installed ] || PYTHONPATH=$(CURDIR)/$(VENV)/frameworks \
	  $(BIN)/python -m pytest -n $(JOBS) $(FRAMEWORKS) $(ARGS)

doctest: $(VENV)/dev.ready          ## the examples in the docstrings
	@$(BIN)/python -m pytest --doctest-modules --ignore src/batchnorm/conformance --ignore src/batchnorm/backends/triton \
	  --ignore src/batchnorm/integrations/lightning.py --ignore src/batchnorm/integrations/transformers.py src

examples: $(VENV)/dev.ready         ## the gallery, each in a process of its own
	@for f in examples/*.py; do echo "$$f"; $(BIN)/python -W error -W "$(NOTICE)" $$f >/dev/null || exit 1; done

docs: play $(VENV)/docs.installed        ## the documentation, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: docs $(VENV)/dev.ready   ## the documentation in a browser, on a desktop and a phone, light and dark
	@$(BIN)/python -m pytest -n $(JOBS) tests/docs/test_site.py tests/docs/test_api_page.py $(ARGS)

bench: $(VENV)/study.ready          ## speed against torch on this machine: tables here, a page in bench/
	@$(BIN)/python -m batchnorm bench $(ARGS)

clean:     ## remove what these commands made
	rm -rf $(VENV) bench site study play $(PAGE)/node_modules src/batchnorm/play/page.html .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("batchnorm needs Python 3.11 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

# Networks and tools for tests. Their requirements would install another build of torch, and clients of a hub.
ALONE_dev := timm torchao torchvision
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
$(VENV)/%.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "setting up .venv for $*: a few minutes the first time"
	@$(PIP) --editable '.[$*]'
	@$(if $(ALONE_$*),$(PIP) --no-deps $(ALONE_$*))
	@touch $@

# The native library is in the user's cache. Without a compiler a notice names what to install, and make continues.
NATIVE := $(wildcard src/batchnorm/backends/native/*.cpp src/batchnorm/backends/native/*.h)
$(VENV)/study.ready $(VENV)/dev.ready: $(VENV)/%.ready: $(VENV)/%.installed $(NATIVE)
	@$(BIN)/batchnorm warmup >&2 && touch $@ || true
