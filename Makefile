PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test bench lint torture clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call instant; they depend on what decides the environment.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard kernels/csrc/*)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e .[test,dali]
	touch $@

# --resume: a second call finishes what the first has left, and shows finished runs again.
demo: $(VENV)/.installed
	$(BIN)/python -m slca_fast train demo-seqft demo-slca demo --output runs/demo --resume

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(VENV)/.installed-test
	$(BIN)/slca-fast bench --suite ops
	$(BIN)/python -m pytest bench --benchmark-only

# 100 kills at random times, on one rank and on two, and a failure at every file operation: minutes, not seconds.
torture: $(VENV)/.installed-test
	SLCA_FAST_TEST_KILLS=100 SLCA_FAST_TEST_EVERY_FAULT=1 $(BIN)/python -m pytest --timeout 7200 tests/runs/test_kill.py tests/runs/test_faults.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build runs *.egg-info kernels/_native
