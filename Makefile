# Every target does its own set-up: virtual environment, packages, system libraries (scripts/setup.sh).
.PHONY: help setup demo kafka test test-slow lint types format bench clean

BIN := .venv/bin
export PYTHONWARNINGS ?= ignore
# Two threads at most per process: the suite and the demo are sized for two cores and Ray starts several processes.
export OMP_NUM_THREADS ?= 2

help:
	@echo "make demo       replay four videos through Ray, detect with memory, write Parquet and an annotated MP4"
	@echo "make kafka      a Kafka broker on 127.0.0.1:9092 for a first try"
	@echo "make test       lint, types and tests (what CI runs)"
	@echo "make test-slow  the soaks and minutes-long checks"
	@echo "make bench      every benchmark of benchmarks/; results as JSON in benchmarks/results/"

setup:
	@scripts/setup.sh

demo: setup
	@$(BIN)/python -m pipelines.demo

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

test: lint types
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build runs demo .mypy_cache .ruff_cache .pytest_cache
