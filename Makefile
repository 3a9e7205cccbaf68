# The README's commands. The variables may be overridden, for example
#   make demo PIP_ARGS="--index-url https://... --extra-index-url https://..."
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
# Two processes, each with whole files: fixtures of a file are made once.
PYTEST_ARGS ?= -n 2 --dist loadfile
BIN := $(VENV)/bin
STAMP := $(VENV)/.ela_mm_installed

.PHONY: setup demo test test-all lint docs clean

setup: $(STAMP)

$(STAMP): requirements/stack.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools<82' wheel
	@echo "Installing the stack (torch brings several GB of CUDA packages) ..."
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements/stack.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-build-isolation -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python tools/demo.py

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'slow or not slow'

lint: setup
	$(BIN)/python -m ruff check .

# A warning is an error: a broken link, a name that is not there.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

clean:
	rm -rf build dist *.egg-info docs/_build work_dirs/demo data/digits data/digits_maps
