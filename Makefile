# demo   from a fresh machine to verified generation, output shown
# test   lint, then every test
# check  lint, then the unit and property tests: the quick answer while working
# lint   ruff, formatting, strict types, import rules
# bench  measurements; they report, they never fail a build
# graphs trace the shipped models again (after a change of transformers or of the tracer)
# docs   run the commands in README.md and docs/, and write their outputs into the pages
# man    man pages of the programs and their commands, in build/man
# clean  remove what the targets above made, the environment excepted

PYTHON ?= python3
# pip takes the CUDA build from PyPI; on a machine without a GPU set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc); [ $$n -gt 4 ] && n=4; echo $$n)

.PHONY: demo test check lint format bench graphs docs man install clean
.DELETE_ON_ERROR:

install: $(STAMP)

# Torch comes first: it is the large one, and its version decides what pip resolves for the rest.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread per worker: the models are tiny, and more threads only fight for the cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

check: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal tests/unit tests/property

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/planning.py
	$(BIN)/python tests/benchmarks/resharding.py

# A trained checkpoint on a machine made too small for it; the plan is then run on this machine's CPU, every tier
# one step down, and compared with the plain model token by token. Then the checkpoint is cut for two ranks, which
# generate from their shards.
demo: $(STAMP)
	$(BIN)/python -m fixtures.demo demo/plan

graphs: $(STAMP)
	$(BIN)/python -m planner.tracing.ship

docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m fixtures.docs

man: $(STAMP)
	$(BIN)/python -m fixtures.man_pages build/man

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
