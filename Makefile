# make bench   set up, then score every installed method on the embedded track
# make test    set up, then lint, type check and test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread each: spinning OpenMP threads are many times slower on shared cores.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1

SOURCES := requirements-dev.txt constraints.txt $(wildcard */pyproject.toml plugins/*/pyproject.toml)

.PHONY: bench test test-all lint clean

bench: $(VENV)/ready
	$(BIN)/mtk bench

test: $(VENV)/ready lint
	$(BIN)/python -m pytest -m "not slow" -q

test-all: $(VENV)/ready lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy core/src cli/src $(wildcard plugins/*/src)

$(VENV)/ready: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mtk needs Python 3.11 or newer; try make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) mtk-results
