# `make verify` runs the main job and `make test` all tests; both set up .venv first, once.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)

.PHONY: help install verify test test-deep test-frameworks test-portable check lint format types bench record clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# --no-compile, as uv does: of 18,000 modules few are ever imported, and Python compiles and keeps
# those then, also on an image that would have it keep none.
unexport PYTHONDONTWRITEBYTECODE
ifdef UV
MAKE_VENV = uv venv --python $(PYTHON) $(VENV)
INSTALL = uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable
endif

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(MAKE_VENV)
	$(INSTALL) '.[dev]'
	touch $(STAMP)

install: $(STAMP)  ## create .venv and install the project into it

verify: $(STAMP)  ## run the main job: predict, simulate, judge; writes results/verify
	$(BIN)/fedlora-sim verify

# Each process of pytest-xdist on one thread: two of two each on two cores take twice as long.
test test-deep check: export OMP_NUM_THREADS := 1

test: $(STAMP)  ## run all tests, the notebooks too
	$(BIN)/python -m pytest -n 2 --dist worksteal --nbmake --nbmake-timeout=120

test-deep: $(STAMP)  ## run the tests that draw examples, cases, kills or full disks on many more
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -m "hypothesis or design or faults or deep" -n 2

FRAMEWORKS := $(VENV)-frameworks

# Flower allows older versions only of packages that the other tests use.
$(FRAMEWORKS)/.installed: pyproject.toml constraints-frameworks.txt
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install --quiet --no-compile -c constraints-frameworks.txt \
		--editable '.[flower,nvflare,check]' 'flwr[simulation]' tensorboard pytest-xdist
	touch $(FRAMEWORKS)/.installed

test-frameworks: $(FRAMEWORKS)/.installed  ## run the tests of the adapters for Flower and NVFlare with these packages
	FEDLORA_SIM_NEEDS_FRAMEWORKS=1 OMP_NUM_THREADS=1 $(FRAMEWORKS)/bin/python -m pytest -n 2 tests/integrations

test-portable: $(STAMP)  ## run the tests and the quick verification as other processors would
	$(BIN)/python tests/portable.py

check: lint types  ## lint, format, types and the quick tests
	HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -m "not slow" -x -n 2 --dist worksteal

lint: $(STAMP)  ## lint and formatting, without changing anything
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP)  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(STAMP)  ## static types
	$(BIN)/mypy

bench: $(STAMP)  ## time the simulator, the aggregation and local training; writes results/bench
	$(BIN)/python -m benchmarks.spectral
	$(BIN)/python -m benchmarks.matrix
	$(BIN)/python -m benchmarks.aggregation
	$(BIN)/python -m benchmarks.large_aggregates
	$(BIN)/python -m benchmarks.peft_folders
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.sweep

results: $(STAMP)  ## make the numbers of the paper's figures; writes results/paper, keeps what is there
	$(BIN)/python -m analysis.paper

figures: $(STAMP)  ## draw the paper's figures from results/paper; writes results/figures
	$(BIN)/python -m paper_figs

.PHONY: results figures

DOCS := $(VENV)/.docs

$(DOCS): $(STAMP)
	$(INSTALL) '.[docs]'
	touch $(DOCS)

docs: $(DOCS)  ## build the documentation's site into build/docs/site, notebooks run again
	$(BIN)/python docs/build_pages.py
	$(BIN)/python -m mkdocs build --quiet --strict -f docs/mkdocs.yml

.PHONY: docs

record: $(STAMP)  ## record results/verify; write the tables of README and docs from the record
	$(BIN)/python -m paper_figs.documents

lab: $(VENV)/.lab  ## open the notebooks in JupyterLab, which is installed the first time
	$(BIN)/jupyter lab notebooks

$(VENV)/.lab: $(STAMP)
	$(INSTALL) '.[dev,notebooks]'
	touch $(VENV)/.lab

notebooks: $(STAMP)  ## bring the notebooks and their twins in Python together, without outputs
	$(BIN)/jupytext --sync notebooks/*.ipynb
	$(BIN)/jupyter nbconvert --clear-output --inplace notebooks/*.ipynb

.PHONY: lab notebooks

clean:  ## remove the environment and caches, keep results
	rm -rf $(VENV) $(FRAMEWORKS) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
