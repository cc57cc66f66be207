# `make demo` and `make test` do all the set-up on a machine with Python >= 3.11, make and (for speed) a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types check sanitize clean

demo: $(STAMP)
	$(BIN)/dlm-edge demo --out build/demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/python tools/typecheck.py

check: lint types test

# The native operators and their tests under AddressSanitizer and UndefinedBehaviorSanitizer, and a fuzz of shapes and pages.
sanitize: $(STAMP)
	PYTHON=$(BIN)/python tools/sanitize_kernels.sh

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard kernels/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/*.so
