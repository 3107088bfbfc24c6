PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin

.PHONY: help quickstart reproduce test test-all browser lint format docs clean

help:
	@echo "make quickstart  digits from spec to served model and int8: runs/quickstart/"
	@echo "make reproduce   the paper's tables and figures: results/paper/"
	@echo "make test        the tests except the slow ones"
	@echo "make test-all    all tests"
	@echo "make docs        the documentation's site: site/index.html"
	@echo "make lint        ruff and mypy"
	@echo "make format      ruff's formatter"
	@echo "make clean       removes .venv, runs and caches"

quickstart: .venv/all.done
	$(BIN)/python tools/quickstart.py $(ARGS)

reproduce: .venv/all.done
	$(BIN)/python tools/reproduce.py $(ARGS)

# Most of the tests keep one core busy, so two run at a time.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/test.done browser
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/test.done browser
	$(PYTEST) $(ARGS)

# The tests of the server's page drive Chromium.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	{ apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } \
	>/dev/null || echo "No Chromium: the tests of the page are skipped."

lint: .venv/test.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/test.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .matrix site runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache

# One virtual environment; `all` is what the quickstart needs, `test` more.
.venv/%.done: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[$*]"
	@touch $@
