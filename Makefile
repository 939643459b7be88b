# Needs python3 (3.11 to 3.13), pip and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: run test

run: $(READY)
	$(BIN)/kdx experiment=quickstart

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

# uv installs in seconds what takes pip minutes; pip is the fall-back where uv has no build. Compiled once, torch and
# the others are imported in a third of the time, also where Python may write no bytecode.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv \
		&& $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[dev]" \
		|| $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
