# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo install lint test

# the small model that comes with axfold; a copy without its parameters shows the steps with made-up ones
MODEL := $(if $(wildcard src/axfold/weights/demo.safetensors),--model demo,--model model_3_ptm --params synthetic)

demo: $(INSTALLED)  ## fold a small protein on the CPU and compare it with its experimental structure
	$(BIN)/axfold predict examples/demo.fasta --msa examples/demo.a3m $(MODEL) --device cpu --out demo_output
	$(BIN)/axfold compare demo_output/1CTF_A_unrelaxed_rank_001_*.pdb examples/demo.pdb
	@echo 'The results are in demo_output/ (see docs/usage.md).'

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
