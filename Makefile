# Everything runs in .venv, which is built when it is missing or when what it is built from has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-slow lint typecheck docs clean

help:  ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv with the pinned versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV), which takes about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## train a small model and show what it does, in demo/
	$(BIN)/ndm demo

test: lint  ## lint, then run every test that is not slow, and the examples in the texts; WORKERS=N processes
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow" -n $${WORKERS:-2} --dist loadfile

test-slow: install  ## run the slow tests: the trial of faults, whose table it prints, then the others; WORKERS=N processes
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m slow tests/faults
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m slow --ignore tests/faults -n $${WORKERS:-2} --dist loadfile

lint: typecheck  ## check style, types and the order of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

typecheck: install  ## check types
	$(BIN)/mypy src

docs: install  ## build the documentation, in site/
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees docs site

clean:  ## remove what was made, but for .venv and the runs
	rm -rf build dist demo site docs/notebooks .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
