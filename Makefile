# make run: install and run every notebook (quick profile), one a core. make test: install and check everything.
PYTHON ?= python3
BIN := .venv/bin
BUDGET ?= 480
JOBS ?= $(shell getconf _NPROCESSORS_ONLN || echo 1)
OUT ?= runs/gpu
CHECKED := runs/checked

.PHONY: install run test slow faults bench gpu lab site

install: .venv/.installed

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("mgenb needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "installing into .venv (torch is large: this can take some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: install
	@$(BIN)/mgenb run all --profile quick --jobs $(JOBS)

# the tests of one file share a process, and so its fixtures; those of notebooks are long and go one by one, after
# `mgenb check`, whose rows and records they compare
test: install
	$(BIN)/ruff check mgenb tests docs notebooks conftest.py
	$(BIN)/ruff format --check mgenb tests docs conftest.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests --ignore=tests/notebooks -m "not slow" -n auto --dist loadfile
	rm -rf $(CHECKED)
	$(BIN)/mgenb check --out $(CHECKED)
	MGENB_CHECKED=$(CHECKED) $(BIN)/python -m pytest tests/notebooks -m "not slow" -n auto --dist worksteal

slow: install
	$(BIN)/python -m pytest tests -m slow

# some hundred kills, corruptions, bad inputs, odd places and crafted files; `make test` has a fixed part of them
faults: install
	MGENB_FAULTS=whole $(BIN)/python -m pytest tests/faults/harness -n auto --dist worksteal

bench: install
	$(BIN)/python -m pytest tests/benchmarks --benchmark-columns=min,median,rounds

gpu: install
	$(BIN)/python tests/gpu/run.py --budget $(BUDGET) --out $(OUT)

# every warning, and every link that leads nowhere, is an error; no notebook is executed
site: install
	$(BIN)/python docs/build.py

# .jupyterlab turns automatic saving off, which would write what was only read
lab: install
	env OMP_WAIT_POLICY=passive $(BIN)/jupyter lab notebooks --LabApp.app_settings_dir='$(CURDIR)/.jupyterlab'
