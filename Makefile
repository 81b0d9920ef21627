# Everything runs inside .venv, which `make setup` fills from requirements.lock (hashes, no index addresses).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test test-fast test-spark test-cluster test-faults check setup bench ui doctor lock clean

demo: setup
	$(BIN)/clozeworks run flows/recipes/demo.toml

# Files of tests run next to one another; WORKERS=0 runs them one after another, in this process.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST)

# What a contributor runs while working: no ranks, servers, jobs or browser.
test-fast: setup
	$(PYTEST) -m 'not slow and not spark and not cluster'

# A real Spark of two executors and a real Flink from Maven Central; skips, and says why, where that cannot be.
test-spark: setup
	$(BIN)/python -m pytest -m spark tests/spark

# Several nodes on this machine: sshd in network namespaces, Slurm; skips, and names what is missing.
test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests/cluster

# The fault suite in its long form: 30 kills of training, 200 sequences of operator actions, 3,000 wrong recipes, ...
# (tests/faults/README.md); `make test` has the short form of each.
FAULTS := tests/faults tests/training/resuming/test_faults.py tests/training/resuming/test_replacing.py tests/pipelines/results/test_builds.py tests/pipelines/results/test_locks.py
test-faults: setup
	CLOZEWORKS_FAULTS=long CLOZEWORKS_FAULT_KILLS=30 $(BIN)/python -m pytest $(FAULTS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python infra/check_infra.py
	$(BIN)/python infra/secret_scan.py

setup: $(STAMP)

# DeepSpeed's CPU op and our compiled loops are built here, once, so that no later command waits for a compiler.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(f"Python >= 3.11 is needed, this is {sys.version.split()[0]}; name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed (DeepSpeed compiles an op): install g++ or clang" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ *--hash/p;}' requirements.lock > .venv/uv.lock
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.lock
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q pipelines training flows
	$(BIN)/python -m pipelines.compile_loops
	$(BIN)/python -m training.build_ops
	touch $@

# MLflow and Prefect of a workspace, on loopback.
WORKSPACE ?= workspaces/demo
ui: setup
	$(BIN)/clozeworks ui $(WORKSPACE)

doctor:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m flows.doctor; else $(PYTHON) -m flows.doctor; fi

bench: setup
	@test -f "tests/benchmarks/$(NAME).py" || { echo "NAME=$(NAME): no such benchmark; there are: $$(cd tests/benchmarks && ls *.py | sed 's/\.py//' | xargs)" >&2; exit 2; }
	PYTHONPATH=. $(BIN)/python tests/benchmarks/$(NAME).py

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --all-extras pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv build *.egg-info
