# Python 3.11 or newer and make are all that a new machine needs. After the first `make` everything works offline.
PYTHON ?= python3
OVERRIDES ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo check test measure simulation docs install clean

## The main job on the built-in sounds: four ways of learning, one table, at most three minutes.
demo: $(INSTALLED)
	$(BIN)/fedgen run -m experiment=demo mode=standalone,federate,combined,centralised \
		hydra.sweep.dir=runs/demo 'hydra.sweep.subdir=$${mode}'
	$(BIN)/fedgen compare runs/demo/*

## Lint, types and the fast tests, as often as you like: at most three minutes.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not slow and not chaos and not huge' $(ARGS)

## The whole test suite, on as many cores as there are; ARGS="-m 'not slow'" for the fast part.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

## How large and how entangled the code is.
measure: $(INSTALLED)
	$(BIN)/python benchmarks/measure.py

## The apps in Flower's own simulation: make simulation OVERRIDES="mode=combined rounds=2"
simulation: $(INSTALLED)
	$(BIN)/fedgen simulate $(OVERRIDES)

## The documentation as a site in site/, with the Python interface; a broken link is an error.
docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

## The environment alone.
install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedgen needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV): once, a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

## Remove the environment and caches; the results in runs/ stay.
clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
