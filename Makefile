# make mnist   the paper's MNIST experiment: set-up, training, figure
# make test    set-up and all tests except the slow ones
# make shapes  set-up and the shape tests alone
# make check   lint, types, imports, and the numbers of the documentation
# make docs    the site of the documentation, into build/docs
# make bench   timings against peers (see benchmarks/)
# make test-slow     tests of more than 5 seconds, of whole networks and whole runs
# make test-faults   runs of one to four processes, killed, damaged and continued
# make test-peers    faults of other libraries, and weights exchanged with PyTorch's
#                    networks, which are installed first
# make dist          source archive and wheel, tried in an empty environment of each
#                    Python that is here
# make demo-multi    two processes, of which one is killed, and the run resumes

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/figure1
DEMO_WORKDIR ?= runs/demo_multi

BIN := $(VENV)/bin

.PHONY: mnist test shapes test-slow test-faults test-peers demo-multi dist check docs bench clean

mnist: $(VENV)/.installed
	$(BIN)/bn-jax figure1 $(WORKDIR)

# XLA without most of its optimizations compiles a third faster; slow tests keep them.
# One process runs all tests of a file, because they share fixtures.
test: $(VENV)/.installed-dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m slow

shapes: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m shapes

# One after the other: each starts several processes itself.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m faults tests/faults

test-peers: $(VENV)/.installed-dev
	$(BIN)/pip install -q -e '.[dev,peers]' -c constraints.txt
	$(BIN)/python -m pytest -m "not slow" \
		tests/peers tests/models/inception/test_torch_peers.py tests/docs/test_coming_from.py

demo-multi: $(VENV)/.installed
	$(BIN)/python scripts/demo_multi.py --workdir=$(DEMO_WORKDIR)

# `build` makes the wheel from the source archive.
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python scripts/try_wheel.py dist/*.whl

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m docs tests/docs

# The notebook is executed; a warning ends the build.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

bench: $(VENV)/.installed-dev
	$(BIN)/pip install -q -e '.[benchmark]' -c constraints.txt
	$(BIN)/python benchmarks/mnist_step.py
	$(BIN)/python benchmarks/batch_norm.py

# One installation at a time, each a step on the way to the next.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv312 build dist
