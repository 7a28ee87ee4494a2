PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
EXTRAS := test,dali
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c $(CONSTRAINTS)

.PHONY: demo test test-quick test-lowest bench lint types torture clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call instant; they depend on what decides the environment.
$(VENV)/.installed: $(BIN)/python pyproject.toml $(CONSTRAINTS) setup.py CMakeLists.txt $(wildcard kernels/csrc/*)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e .[$(EXTRAS)]
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(INSTALL) -e .[lint]
	touch $@

# --resume: a second call finishes what the first has left, and shows finished runs again.
demo: $(VENV)/.installed
	$(BIN)/python -m slca_fast train demo-seqft demo-slca demo --output runs/demo --resume

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Without what is marked by hand as slow or thorough (CONTRIBUTING.md): under 90 s on two cores.
test-quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not thorough"

# The oldest versions that pyproject.toml allows, in an environment of their own (6 GB).
test-lowest:
	$(MAKE) VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt EXTRAS=test test-quick

bench: $(VENV)/.installed-test
	$(BIN)/slca-fast bench --suite ops
	$(BIN)/python -m pytest bench --benchmark-only

# 100 kills at random times, on one rank and on two, a failure at every file operation, and every known and 2,000 random
# edits of a run's folder under every command: minutes, not seconds.
torture: $(VENV)/.installed-test
	SLCA_FAST_TEST_KILLS=100 SLCA_FAST_TEST_EVERY_FAULT=1 SLCA_FAST_TEST_EDITS=2000 $(BIN)/python -m pytest \
		--timeout 7200 tests/runs/test_kill.py tests/runs/test_faults.py tests/runs/test_edited_runs.py

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# setup.py installs kernels/ as slca_fast.kernels; a type checker gets that shape as links. It installs nothing, for the
# commit hook; the environment variable keeps pyright from asking PyPI for a newer version.
types:
	rm -rf build/typing && mkdir -p build/typing/slca_fast
	ln -s $(addprefix ../../../,$(filter-out slca_fast/kernels,$(wildcard slca_fast/*)) kernels) build/typing/slca_fast
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright build/typing/slca_fast/*

clean:
	rm -rf $(VENV) .venv-lowest build runs *.egg-info kernels/_native
