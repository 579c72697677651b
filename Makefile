# Two commands do everything on a fresh machine with Python 3.11:
#   make demo    sets up .venv and trains two generations
#   make test    sets up .venv, then lint, types, documentation and all tests

PYTHON ?= python3.11
# One more worker than CI has cores: many tests wait for Slurm or Kubernetes.
PYTEST_ARGS ?= -n 3 --dist loadscope --no-loadscope-reorder --durations=30
VENV := .venv
TRAINER_LOCK := requirements/trainer-cpu.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
LOCKED := $(PIP) --require-hashes --only-binary :all: -r
COMPILE_TOOL := $(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 $(LOCK_OPTIONS)
COMPILE := $(COMPILE_TOOL) pyproject.toml \
	--extra postgresql --extra mysql --extra mlflow

.PHONY: demo test test-fast bench bench-gpu lint types docs schemas chart faults-long soak servers image sbom locks clean

demo: $(VENV)/.trainer
	$(BIN)/mlip-job demo

test: $(VENV)/.dev
	$(MAKE) --jobs=3 --output-sync=target lint types docs
	$(BIN)/pytest $(PYTEST_ARGS)

# The daily loop: unit tests and those of the contracts on a directory, without fits; a minute or two.
test-fast: $(VENV)/.dev
	$(BIN)/pytest -n 2 -q -m 'not pacemaker' tests/unit

# A thousand kills of replayed fits; half an hour or so.
faults-long: $(VENV)/.dev
	MLIP_JOB_TEST_FAULT_POINTS=1000 $(BIN)/pytest --timeout=7200 tests/faults/test_replayed.py

# Random faults, drains and cancels under a real kubelet and a real Slurm, as root.
SOAK_SECONDS ?= 3600
soak: $(VENV)/.dev
	MLIP_JOB_TEST_SOAK_SECONDS=$(SOAK_SECONDS) nice -n 19 $(BIN)/pytest -s \
		tests/integration/kubernetes/test_soak.py

# Cost of exports, commands and fits, compared with ASE; 20 minutes on a quiet machine.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# On a node with an NVIDIA GPU, in .venv-gpu: self-test, a fit by each trainer, idle time of the GPU.
bench-gpu:
	$(MAKE) VENV=.venv-gpu TRAINER_LOCK=requirements/trainer-gpu.txt .venv-gpu/.trainer
	.venv-gpu/bin/python -m benchmarks.gpu $(BENCH_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

# The documentation site, in site/. A broken link, or a page that is not in the menu, is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# What docs/schemas holds is made from the models; a test says when it is out of date.
schemas: $(VENV)/.dev
	$(BIN)/python -m mlip_job.report.model docs/schemas

# What in charts/mlip-job follows from its values and from the models; likewise.
chart: $(VENV)/.dev
	$(BIN)/python tools/make-chart

# PostgreSQL, MariaDB and whatever else the tests start, on Debian; run it as root.
servers:
	tools/install-servers
	PYTHON=$(PYTHON) tools/install-test-venvs

# The image of a job, by docker or podman; docs/images.md has the options.
ENGINE ?= docker
TARGET ?= cpu
image:
	$(ENGINE) build --target $(TARGET) --tag mlip-job:$(TARGET) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg REVISION=$$(git rev-parse HEAD) $(IMAGE_OPTIONS) .

# A bill of materials (CycloneDX) of the locked Python packages, for a release; docs/images.md.
sbom: $(VENV)/.dev
	mkdir -p dist
	for lock in trainer-cpu trainer-gpu; do \
		$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
			--output-reproducible --output-file dist/mlip-job-$$lock.cdx.json \
			requirements/$$lock.txt || exit; \
	done

# Locks are installed with their hashes, without resolution and without building anything but
# mlip-job: see requirements/README.md.
$(VENV)/.build: requirements/build.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(LOCKED) requirements/build.txt
	touch $@

$(VENV)/.trainer: $(TRAINER_LOCK) pyproject.toml $(VENV)/.build
	$(LOCKED) $(TRAINER_LOCK)
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.trainer
	$(LOCKED) requirements/dev.txt
	touch $@

# Versions of the existing locks are kept; add LOCK_OPTIONS=--upgrade for new ones.
locks: $(VENV)/.build
	$(COMPILE) --override requirements/cpu-overrides.txt requirements/cpu.in \
		-o requirements/trainer-cpu.txt
	$(COMPILE) requirements/gpu.in -o requirements/trainer-gpu.txt
	$(COMPILE) --override requirements/cpu-overrides.txt requirements/dev.in \
		-c requirements/trainer-cpu.txt -o requirements/dev.txt
	$(COMPILE_TOOL) pyproject.toml -c requirements/trainer-cpu.txt -o requirements/core.txt
	$(COMPILE_TOOL) --allow-unsafe requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE_TOOL) requirements/test-mlflow.in -o requirements/test-mlflow.txt

clean:
	rm -rf $(VENV) .venv-gpu mlip-demo site dist
