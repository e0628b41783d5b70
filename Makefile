# Two commands for a fresh machine with Python >= 3.11: make quickstart, make test.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
STUDY ?= runs/quickstart

.PHONY: install quickstart reports test slow lowest check dist site clean

install: $(STAMP)

$(STAMP): setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: install
	$(BIN)/python -m launch.study --config=experiments/quickstart.py --workdir=$(STUDY)

# The pages of docs/results, out of their tables.
reports: install
	for tables in docs/results/*/tables; do $(BIN)/python -m launch.report \
	  --runs=$${tables%/tables} --claims --out=build/reports/$$(basename $${tables%/tables}) \
	  || exit 1; done

test: install
	$(BIN)/python -m pytest

slow: install
	$(BIN)/python -m pytest -m slow

# With the oldest versions that setup.py allows.
lowest:
	$(PYTHON) -m venv --clear build/lowest
	build/lowest/bin/python -m pip install --quiet uv
	build/lowest/bin/uv pip install --python build/lowest/bin/python \
	  --resolution lowest-direct --editable '.[test]'
	build/lowest/bin/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/zizmor --offline --quiet .github
	mkdir -p .typing/steepest
	for f in experiments models optimizers data training tuning eval report launch; do \
	  ln -sfn ../../$$f .typing/steepest/$$f; done
	MYPYPATH=.typing $(BIN)/mypy -p steepest

# An sdist, and the wheel that is built from it.
dist: install
	$(BIN)/python -m build --no-isolation --outdir dist

# The pages of docs/ as a site, in build/site; a broken link is an error.
site: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .typing build dist *.egg-info
