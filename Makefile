# make demo      install and train
# make test      test suite
# make check     style, import layers and types
# make install   only .venv and the package
# make docs      the documentation as a site, into build/docs (installs the extra docs first)
# make notebooks   the course as Jupyter notebooks with solutions, into notebooks/
# make pretrained  trains the networks that ship in the package, and writes their cards
# make weights   trains the networks that a release carries, into build/weights
# make wheel     sdist and a wheel for this machine, into dist/
# make wheels    also wheels for Windows, macOS and Linux on ARM
# make sanitize  tests of the C kernels under AddressSanitizer and UBSan;
#                make sanitize KIND=--thread: under ThreadSanitizer (needs clang 19 and libomp)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# without an NVIDIA driver, the constraint makes pip choose the CPU build of torch if there is one
CPU := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c requirements/cpu.txt)

KERNEL := $(wildcard src/backspike/kernel/csrc/*.[ch])
PYTHON_FILES := src tests examples benchmarks fuzz docs/conf.py docs/backspike_site setup.py

# the wheels' tools stay out of the package's environment
TOOLS := $(abspath $(VENV)-wheels)

.PHONY: demo install install-dev test slow check docs notebooks pretrained weights wheel wheels sanitize clean
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

install-dev: $(VENV)/.installed-dev

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not slow" -n 2

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet $(CPU) -e '.[docs]'
	touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

notebooks: $(VENV)/.installed
	$(BIN)/backspike course notebooks --solutions --force

pretrained: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/pretrained.py package

weights: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/pretrained.py release

$(TOOLS)/.installed: requirements/wheels.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet -r requirements/wheels.txt
	touch $@

# all wheels are built from the sdist, as those of anybody who downloads it
PIP_WHEEL = $(TOOLS)/bin/pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz
# names the oldest Linux that a wheel runs on; libgomp stays outside, so that torch's is used
MANYLINUX = PATH="$(TOOLS)/bin:$$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir dist
# -I: pip hides the packages of its environment from what it starts
ZIG = LDFLAGS=-s BACKSPIKE_PLATFORM=$(1) CC="$(TOOLS)/bin/python -I -m ziglang cc -target $(2)" $(PIP_WHEEL)

wheel: $(TOOLS)/.installed
	rm -rf dist
	$(TOOLS)/bin/python -m build --sdist --outdir dist
	$(PIP_WHEEL)
	[ ! -e dist/*-linux_*.whl ] || { $(MANYLINUX) dist/*-linux_*.whl && rm dist/*-linux_*.whl; }

wheels: wheel
	$(call ZIG,win_amd64,x86_64-windows-gnu)
	$(call ZIG,macosx_11_0_arm64,aarch64-macos.11.0)
	$(call ZIG,linux_aarch64,aarch64-linux-gnu.2.17)
	$(MANYLINUX) dist/*-linux_aarch64.whl && rm dist/*-linux_aarch64.whl

sanitize: $(VENV)/.installed-dev
	PYTHON=$(BIN)/python .ci/sanitize $(KIND)

clean:
	rm -rf $(VENV) $(TOOLS) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
