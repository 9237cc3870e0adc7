# Two commands matter: `make demo` and `make test`. Both set up .venv first; nothing else is needed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: setup demo test quick lint docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/tailor demo

test: $(READY) lint
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

quick: $(READY)
	$(VENV)/bin/python -m pytest -m "not slow"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/python tools/docs/generate.py
	$(VENV)/bin/python tools/docs/models_page.py

clean:
	rm -rf build dist runs/demo
