# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo install lint test

demo: $(INSTALLED)  ## fold a small protein on the CPU with synthetic parameters
	$(BIN)/axfold predict examples/demo.fasta --msa examples/demo.a3m --model model_3_ptm \
	  --params synthetic --device cpu --out demo_output
	@echo 'The results are in demo_output/ (see docs/usage.md). They are meaningless: the parameters are made up.'

test: lint  ## every check and test that needs no GPU
	$(BIN)/pytest

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)  ## the environment, .venv, with axfold in it as it stands here

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("axfold needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)
