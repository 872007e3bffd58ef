# make demo: install and train; make test: the test suite; make check: style and types; make install: only .venv and the package
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# on a machine without an NVIDIA driver the constraint keeps pip at the CPU build of torch where one is on offer
CPU := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c requirements/cpu.txt)

KERNEL := $(wildcard src/backspike/kernel/csrc/*.[ch])
PYTHON_FILES := src tests examples benchmarks fuzz setup.py

.PHONY: demo install test slow check clean
demo: install
	$(BIN)/backspike train

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py $(KERNEL) requirements/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(CPU) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py $(KERNEL) requirements/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(CPU) -e '.[dev]'
	touch $@ $(VENV)/.installed

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not slow" -n 2

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
