# Every target does its own set-up: virtual environment, packages, system libraries (scripts/setup.sh).
.PHONY: help setup browser demo kafka test test-fast suite test-slow test-random lint types format bench clean

BIN := .venv/bin
export PYTHONWARNINGS ?= ignore
# Two threads at most per process: the suite and the demo are sized for two cores and Ray starts several processes.
export OMP_NUM_THREADS ?= 2
# Python keeps what it compiled, also where the shell says otherwise: without, each process of a suite compiles all tests.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo       replay four videos through Ray, detect with memory, write Parquet and an annotated MP4"
	@echo "make kafka      a Kafka broker on 127.0.0.1:9092 for a first try"
	@echo "make test-fast  the tests that need no Ray, no Kafka and no training: about 3 minutes on two cores"
	@echo "make test       lint, types and tests (what CI runs): about 12 minutes on two cores"
	@echo "make test-slow  the soaks and minutes-long checks"
	@echo "make bench      every benchmark of benchmarks/; results as JSON in benchmarks/results/"

setup:
	@scripts/setup.sh

browser:
	@scripts/browser.sh

demo: setup
	@$(BIN)/streambank demo mamba

kafka:
	@scripts/kafka.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# WORKERS processes side by side, one thread of torch each; what shares a cluster, a broker or the fixtures of a file stays together.
WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=20
SPREAD := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test-fast: setup
	$(PYTEST) $(SPREAD) -m "not slow and not ray and not kafka and not training and not heavy"

# The types are checked beside the tests, which do not keep both cores busy all the time.
test: lint browser
	@$(MAKE) --no-print-directory --jobs=2 types suite

suite:
	$(PYTEST) $(SPREAD) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

# Other examples of hypothesis and another order of the tests each time; the seed is printed first. Not a part of CI: it draws.
test-random: setup
	@[ -d build/randomly ] || $(BIN)/python -m pip install --quiet --no-deps --target build/randomly pytest-randomly==5.1.0
	PYTHONPATH=build/randomly HYPOTHESIS_PROFILE=random $(PYTEST) $(SPREAD) -m "not slow"

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build runs demo .mypy_cache .ruff_cache .pytest_cache
