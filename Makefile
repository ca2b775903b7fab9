.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
TRY ?= .venv-try
RUN ?= runs/digits
FOLDER ?= data
EVIDENCE ?= runs/redundancy
DATA ?= cifar10
PYTEST := pytest -n logical --maxprocesses 8 --dist worksteal

.PHONY: help train test check lower-bounds format evidence thorough docs dist try-dist clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

train: $(BIN)/.train  ## train on data with copies: copies, full, fewer epochs, the paper, on three seeds; what is gained? (two minutes)
	$(BIN)/pfb train --data digit-clips --epochs 8 --batch-size 64 --prune 0.5 --eval-every 8 --control full short paper --seeds 3 4 5 --out $(RUN) --overwrite
	$(BIN)/pfb report $(RUN)

test: $(BIN)/.dev  ## run all tests, on several processors
	$(BIN)/$(PYTEST)

check: $(BIN)/.dev  ## all that CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

lower-bounds:  ## run all tests with the oldest allowed release of every dependency
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --editable ".[dev]"
	$(OLDEST)/bin/$(PYTEST) -W default  # old releases are allowed to warn of newer ones

format: $(BIN)/.dev  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

evidence: $(BIN)/.train  ## train with near-duplicates pruned, drawn less often and removed, on data in FOLDER (docs/redundancy.md), into EVIDENCE
	for set in logs signs digits code clips tail; do $(BIN)/python -m studies grid --set $$set --folder $(FOLDER) --images $(DATA) --out $(EVIDENCE) || exit 1; done
	$(BIN)/python -m studies stream --folder $(FOLDER) --out $(EVIDENCE)

docs: $(BIN)/.docs  ## build the documents site into build/site
	$(BIN)/python -m sphinx -b html -W --keep-going -n -q -d build/doctrees docs build/site
	@echo "open build/site/index.html"

dist: $(BIN)/.dist  ## build wheel and source distribution into dist, and check them
	rm -rf dist build/lib build/sdist.txt
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	mkdir -p build
	tar tzf dist/torch_pfb-*.tar.gz | cut -d/ -f2- | LC_ALL=C sort > build/sdist.txt
	git ls-files | LC_ALL=C sort | LC_ALL=C comm -23 - build/sdist.txt > build/missing.txt
	test ! -s build/missing.txt || { echo "not in the source distribution:"; cat build/missing.txt; exit 1; }

try-dist: dist  ## install the wheel in an empty environment and run it there
	$(PYTHON) -m venv --clear $(TRY)
	$(TRY)/bin/pip install --quiet dist/torch_pfb-*.whl
	cd $(TRY) && bin/python -c "import pfb; print(pfb.__version__, pfb.__file__)"
	$(TRY)/bin/pip install --quiet "$$(ls dist/torch_pfb-*.whl)[train]"
	cd $(TRY) && bin/pfb --version && bin/pfb train --data digits --dry-run

clean:  ## remove the virtual environments and all caches
	rm -rf $(VENV) $(OLDEST) $(TRY) build dist docs/results .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

thorough: $(BIN)/.dev  ## try every property of the library on 20,000 examples; takes an hour
	$(BIN)/pytest tests/unit -m hypothesis --hypothesis-profile thorough

$(BIN)/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

$(BIN)/.dev: $(BIN)/.train
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(BIN)/.docs: $(BIN)/.train
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

$(BIN)/.dist: $(BIN)/.train
	$(BIN)/pip install --quiet build twine
	touch $@
