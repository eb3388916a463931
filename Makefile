# The first call of any target sets up .venv; later calls reuse it until pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.fxprune-installed
TORCH := $(shell grep -E '^torch(vision)?==' constraints.txt)
JOBS ?= 2

# One thread per process: the suite runs in $(JOBS) processes, and timings are per core.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format bench docs dist stranger

help:
	@echo "make demo       train a small network, slim it by 60 % and show what that did (under a minute)"
	@echo "make test       lint, types and the default test suite"
	@echo "make test-slow  the long test suites"
	@echo "make lint       ruff and mypy alone"
	@echo "make format     sort imports and lay out the sources"
	@echo "make bench      compile time against torch-pruning"
	@echo "make docs       build the documentation into site/"
	@echo "make dist       build wheel and sdist into dist/"
	@echo "make stranger   install the wheel in a fresh environment and walk through the tutorial there"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,docs,bench,all]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m fxprune.demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m slow --timeout 7200 $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/compile_time.py $(ARGS)

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

dist: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation $(ARGS)

stranger: $(STAMP)
	$(BIN)/python benchmarks/stranger.py $(ARGS)
