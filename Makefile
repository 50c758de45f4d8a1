# make demo | make test | make check | make test-docker | make constraints | make docs | make evidence | make pictures | make bench | make bench-samplers | make serve | make dashboard | make clean
# Everything a target needs is set up by itself, in .venv; only Python >= 3.11 and make must be there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # or each of the many processes that tests start compiles everything anew

.PHONY: demo test check types tests test-docker docs evidence pictures bench bench-samplers serve dashboard help clean

demo: $(VENV)/installed  ## compare four samplers on real digits: tuner.db, report/index.html
	$(BIN)/tuner compare digits

test: $(VENV)/installed-test check  ## set up, check and test everything

check: $(VENV)/installed-test  ## ruff, format, types, layers, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory --jobs=2 types tests

types: $(VENV)/installed-test
	$(BIN)/mypy

# four tests at once on two cores, as some of them wait
tests: $(VENV)/installed-test
	$(BIN)/pytest -n $(or $(JOBS),4) --dist worksteal

test-docker: $(VENV)/installed-test  ## image, containers and accidents, on a real Docker engine
	$(BIN)/pytest tests/docker

.PHONY: constraints
constraints: $(VENV)/installed-test  ## let the image be built of the libraries that are in .venv now
	$(BIN)/python docker/constraints.py postgresql dask > docker/constraints.txt

docs: $(VENV)/installed-test  ## write the generated parts of the documentation anew
	UPDATE_DOCS=1 $(BIN)/pytest -q tests/test_docs.py -k fields

evidence: $(VENV)/installed  ## put the claims of studies/claims to the test: studies/README.md; goes on where it stopped
	$(BIN)/tuner evidence

pictures: $(VENV)/installed-test  ## the README's pictures, of the demo's own run (needs Chromium)
	$(BIN)/python tests/browser/pictures.py --storage sqlite:///tuner.db --report report --out docs/images

bench: $(VENV)/installed-test  ## claims of speed, measured
	$(BIN)/python tests/benchmarks/bench_network.py
	$(BIN)/python tests/benchmarks/bench_caviar.py
	$(BIN)/python tests/benchmarks/bench_ledger.py
	$(BIN)/python tests/benchmarks/bench_service.py
	$(BIN)/python tests/benchmarks/bench_dashboard.py

bench-samplers: $(VENV)/installed-test  ## samplers on tables of real trainings; DATA=folder, see tests/benchmarks/README.md
	$(BIN)/python -m pip install --quiet onnxruntime coco-experiment
	$(BIN)/python tests/benchmarks/bench_samplers.py $(if $(DATA),--data $(DATA))

serve: $(VENV)/installed  ## the service on tuner.db: HTTP, and the dashboard behind a login
	$(BIN)/tuner serve

dashboard: $(VENV)/installed  ## optuna-dashboard on tuner.db
	$(BIN)/tuner dashboard

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

clean:  ## remove what was set up; databases and reports stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; set PYTHON=... to name one"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once; about a minute)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV), tools of the tests included (once; about a minute)"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/installed
