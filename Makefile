# `make reproduce` and `make test` set up what they need; everything else expects one of them once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: reproduce claims figures docs notebooks test doctest test-slow test-parity test-lowering test-h100 test-matrix lint format setup help

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

setup: $(READY)  ## virtual environment with the pinned requirements

$(READY): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

reproduce: setup  ## train the methods of Table 1 on the embedded digits, AutoAttack, the table
	$(BIN)/python -m experiments.table1 --scale=laptop --autoattack

claims: setup  ## check the statements of the paper numerically, into runs/claims
	$(BIN)/python -m theory.claims --output=runs/claims

figures: setup  ## Figures 1, 2, 4 and 5 of the paper, into runs/figures
	$(BIN)/python -m theory.figures all --output=runs/figures

docs: setup  ## the documentation as a site, into runs/site; warnings are errors
	$(BIN)/python docs/site/build.py --output=runs/site

notebooks: reproduce  ## execute the notebooks of theory/notebooks, into docs/notebooks
	$(BIN)/python docs/site/notebooks.py

test: setup  ## lint, types, the examples of docstrings, and the default tests
	$(MAKE) --jobs=2 lint doctest
	$(BIN)/python -m pytest -n auto

doctest: setup  ## the examples of docstrings
	$(BIN)/python -m pytest --doctest-modules jaxadv experiments -n 2

test-slow: setup  ## the tests that take minutes, and the README's promises, compiled as by default
	XLA_FLAGS= $(BIN)/python -m pytest -n auto -m slow
	XLA_FLAGS= $(BIN)/python -m pytest -n auto tests/test_promises.py

test-parity: setup  ## jaxadv beside the PyTorch reference, which it installs into .peers
	test -d .peers/pyautoattack || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--target .peers -c requirements.txt -r requirements-peers.txt
	test -d .peers/robustbench || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --target .peers robustbench==1.1.1
	PYTHONPATH=.peers $(BIN)/python -m pytest -n auto tests/parity -m "slow or not slow"

test-lowering: setup  ## every compiled program lowers for NVIDIA and AMD GPUs and for TPUs; none is needed
	$(BIN)/python -m pytest -n auto tests/lowering tests/attacks/test_lowering.py -m "slow or not slow"

test-h100: setup  ## programs compiled for an H100 that is not here; an hour or more on two cores
	test -d .h100/nvidia || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --target .h100 -r requirements-h100.txt
	$(BIN)/python -m benchmarks.h100 --output=runs/h100.json
	H100_RESULTS=runs/h100.json $(BIN)/python -m pytest tests/benchmarks/test_h100.py

test-matrix: setup  ## the default tests on Python 3.12 and 3.13 with the newest JAX, and on the lower bounds
	$(BIN)/python -m tests.matrix

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup  ## format and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
