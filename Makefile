# Two commands matter: `make demo` and `make test`. Both set up .venv from requirements.lock first; nothing else is needed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Packages whose files are all on this machine already can be installed without hashes: make LOCKED= setup
LOCKED ?= --require-hashes

# Tests start many Python processes: without cached bytecode each would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test quick lint docs build sbom lock clean

setup: $(READY)

# Python 3.11 to 3.14 share one lock; where no lock fits (another platform), `pip install '.[dev]'` resolves anew.
$(READY): pyproject.toml requirements.lock requirements-torch.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(LOCKED) --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-torch.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/tailor demo

test: $(READY) lint
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

quick: $(READY)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/python tools/docs/generate.py
	$(VENV)/bin/python tools/docs/models_page.py
	$(VENV)/bin/python tools/docs/gpu_memory.py

# The same commit gives the same bytes: times come from the commit.
build: $(READY)
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(VENV)/bin/python -m build --outdir dist

sbom: $(READY)
	$(VENV)/bin/cyclonedx-py environment $(VENV)/bin/python --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.json

lock: $(READY)
	$(VENV)/bin/python tools/lock.py

clean:
	rm -rf build dist runs/demo
