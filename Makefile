# make demo    the bundled recordings through the built-in designs
# make test    lint, types, tests
# make oracle  a hundred thousand random programs of memory calls, by the model and by the running kernel
# make oracle-older PACKAGE=linux-image-VERSION-amd64.deb   a thousand by another kernel, in a virtual machine
# make answer  docs/answer.md and docs/designs anew: every command that they show, run again (a quarter of an hour)
# make bench   measurements against other ways of doing the same
# make setup   what both need: .venv, and perf and a C compiler for the tests that record
# PYTHON=...   the Python to make .venv with (3.11 or later)

PYTHON ?= python3
export PYTHON
BIN := .venv/bin
BENCHMARKS := $(wildcard benchmarks/*.py) $(patsubst benchmarks/%/__main__.py,-mbenchmarks.%,$(wildcard benchmarks/*/__main__.py))

.PHONY: demo test oracle oracle-older answer bench setup system clean
.DEFAULT_GOAL := demo

demo: .venv/.complete
	$(BIN)/faultpath compare recordings/*.trace

test: .venv/.complete system
	@tools/test

oracle-older: .venv/.complete
	PYTHONPATH=tests $(BIN)/python -m live.older $(PACKAGE) $(RECORD)

oracle: .venv/.complete system
	LIVE_PROGRAMS=100000 $(BIN)/python -m pytest -q tests/live

answer: .venv/.complete
	$(BIN)/python tools/answer.py

bench: .venv/.complete
	$(foreach it,$(BENCHMARKS),$(BIN)/python $(it) &&) true

setup: .venv/.complete system

system:
	@tools/setup-system

.venv/.complete: requirements.txt pyproject.toml tools/setup
	@tools/setup

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
