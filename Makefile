# make demo      install and train
# make test      test suite
# make check     style, import layers and types
# make install   only .venv and the package
# make pretrained  trains the networks that ship in the package, and writes their cards
# make sanitize  tests of the C kernels under AddressSanitizer and UBSan;
#                make sanitize KIND=--thread: under ThreadSanitizer (needs clang 19 and libomp)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# without an NVIDIA driver, the constraint makes pip choose the CPU build of torch if there is one
CPU := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c requirements/cpu.txt)

KERNEL := $(wildcard src/backspike/kernel/csrc/*.[ch])
PYTHON_FILES := src tests examples benchmarks fuzz setup.py

.PHONY: demo install test slow check pretrained sanitize clean
demo: install
	$(BIN)/backspike train

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py $(KERNEL) requirements/cpu.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing; compiling the C kernels takes about a minute"
	$(BIN)/pip install --quiet $(CPU) -e .
	@$(BIN)/python .ci/kernels.py
	touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py $(KERNEL) requirements/cpu.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing; compiling the C kernels takes about a minute"
	$(BIN)/pip install --quiet $(CPU) -e '.[dev]'
	@$(BIN)/python .ci/kernels.py
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

pretrained: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/pretrained.py

sanitize: $(VENV)/.installed-dev
	PYTHON=$(BIN)/python .ci/sanitize $(KIND)

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
