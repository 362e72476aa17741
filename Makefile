# Two commands do everything on a machine with Python 3.11+ and a package index: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
FLOOR ?= .venv-floor
NEIGHBOURS ?= .venv-neighbours
BIN := $(VENV)/bin

.PHONY: demo test test-browser test-floor test-neighbours test-gpu test-upstream docs lint format clean

demo: $(VENV)/.installed
	$(BIN)/hf-grounding-dino detect --demo

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The app in headless Chromium, Debian's package, which root gets here where it is missing.
test-browser: $(VENV)/.installed-browser
	command -v chromium > /dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium; } || \
		{ echo 'Chromium is missing: sudo apt-get install chromium' >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/app

# With the lowest version of everything that pyproject.toml allows.
test-floor: $(FLOOR)/.installed
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -n 2 --dist worksteal

# FiftyOne and Label Studio, in an environment of their own, read what `annotate` writes.
test-neighbours: $(VENV)/.installed-test $(NEIGHBOURS)/.installed
	NEIGHBOURS_PYTHON=$(abspath $(NEIGHBOURS)/bin/python) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m neighbours tests/neighbours

# Where there is a CUDA device: the tests that need one, then the figures.
test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python scripts/benchmark --device cuda --dtypes float32,float16,bfloat16 --batch 1,8 --cases forward,train,kernel

# The tests that transformers has for all its models, on the models of this package; fetches its source.
test-upstream: $(VENV)/.installed-upstream
	$(BIN)/python scripts/upstream_tests.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(FLOOR) $(NEIGHBOURS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

$(FLOOR)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(FLOOR)
	$(BIN)/uv pip install --quiet --python $(FLOOR) --resolution lowest-direct --editable '.[test]'
	touch $@

$(NEIGHBOURS)/.installed: tests/neighbours/requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(NEIGHBOURS)
	$(BIN)/uv pip install --quiet --python $(NEIGHBOURS) --requirement $<
	touch $@
