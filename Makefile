# Two commands do everything on a fresh machine with Python 3.11:
#   make demo    sets up .venv and trains two generations
#   make test    sets up .venv, then lint, types and all tests

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --no-header --no-annotate \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	pyproject.toml --extra postgresql --extra mysql

.PHONY: demo test bench lint types faults-long servers locks clean

demo: $(VENV)/.trainer
	$(BIN)/mlip-job demo

test: $(VENV)/.dev lint types
	$(BIN)/pytest $(PYTEST_ARGS)

# A thousand kills of a stand-in that replays a real fit; half an hour or so.
faults-long: $(VENV)/.dev
	MLIP_JOB_TEST_FAULT_POINTS=1000 $(BIN)/pytest --timeout=7200 tests/faults/test_replayed.py

# What exports and commands cost, beside ASE's own way; ten minutes on a quiet machine.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

# PostgreSQL, MariaDB and whatever else the tests start, on Debian; run it as root.
servers:
	tools/install-servers

# The locks are installed as they are, without resolution: see requirements/README.md.
$(VENV)/.trainer: requirements/trainer-cpu.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps -r requirements/trainer-cpu.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.trainer
	$(PIP) --no-deps -r requirements/dev.txt
	touch $@

locks: $(VENV)/.trainer
	$(PIP) uv
	$(COMPILE) --override requirements/cpu-overrides.txt requirements/cpu.in \
		-o requirements/trainer-cpu.txt
	$(COMPILE) requirements/gpu.in -o requirements/trainer-gpu.txt
	$(COMPILE) --override requirements/cpu-overrides.txt requirements/dev.in \
		-c requirements/trainer-cpu.txt -o requirements/dev.txt

clean:
	rm -rf $(VENV) mlip-demo
