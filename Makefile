PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install

$(BIN)/axfold: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(BIN)/axfold

install: $(BIN)/axfold

demo: install  ## fold a small protein on the CPU with synthetic parameters
	$(BIN)/axfold predict examples/demo.fasta --msa examples/demo.a3m --model model_3_ptm --params synthetic \
	  --out demo_output --device cpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## every check and test that needs no GPU
	$(BIN)/pytest
