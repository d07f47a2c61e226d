# Everything runs in .venv, which the first target that needs it sets up. Nothing is installed
# anywhere else.

PYTHON ?= python3
WORKERS ?= 2
TEST_WORKERS ?= 3
NETWORKS ?= 5000

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
BENCH_READY := $(VENV)/bench-ready
PIP := $(RUN) -m pip --disable-pip-version-check
MYPY := MYPYPATH=build/typecheck:benchmarks:tests/support $(RUN) -m mypy --strict
SCRIPTS := tests examples benchmarks

# Compiled once, not by every process of the tests.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help run orders test quick lint setup bench solvers gpu fuzz site wheel clean
.DELETE_ON_ERROR:

help:  ## Show this list.
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' Makefile | awk -F': *' '{ printf "make %-7s %s\n", $$1, $$2 }'

run: $(READY)  ## Prune an OCR network with its real weights to half of its time; see what it costs.
	@$(RUN) examples/faster_reader.py

orders: $(READY)  ## Drop half of ResNet-50's channels, prove the channel orders optimal, export and verify.
	@$(VENV)/bin/upscale-opt run resnet50 --amount 0.5 --side input --layers conv --out out/resnet50
	@echo "Look at it: $(VENV)/bin/upscale-opt report out/resnet50/solution.json -o report.html"

# One worker more than two cores: some tests wait for servers and processes.
test: lint  ## Lint, then run the tests.
	@$(RUN) -m pytest -n $(TEST_WORKERS) --dist worksteal

quick: $(READY)  ## Run the unit tests, those that need no other process.
	@$(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow"

lint: $(READY)  ## Check style, formatting and types.
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@rm -rf build/typecheck && mkdir -p build/typecheck/upscale_opt
	@ln -s $(CURDIR)/upscale_opt/* $(CURDIR)/solver $(CURDIR)/models build/typecheck/upscale_opt
	@$(MYPY) -p upscale_opt
	@set -e; for folder in $(SCRIPTS); do \
		if [ -n "$$(find $$folder -name '*.py' 2>/dev/null)" ]; then $(MYPY) $$folder; fi; \
	done

setup: $(READY)  ## Set up .venv; the other targets do it by themselves.

bench: $(BENCH_READY)  ## Export many networks; time us beside apple-upscale.
	@$(RUN) benchmarks/networks.py
	@$(RUN) benchmarks/speed_vs_upscale.py

solvers: $(BENCH_READY)  ## Check the solvers against brute force; compare them, on networks and beyond.
	@$(RUN) benchmarks/solver_sweep.py --jobs $(WORKERS)
	@$(RUN) benchmarks/solver_scaling.py
	@$(RUN) benchmarks/greedy_vs_exact.py --jobs $(WORKERS)
	@$(RUN) benchmarks/greedy_vs_upscale.py

gpu: $(BENCH_READY)  ## On a machine with a GPU: tests, losslessness, cost models and times there.
	@$(RUN) benchmarks/gpu.py --out docs/gpu.md

fuzz: $(READY)  ## Export thousands of random networks and check that nothing is lost.
	@$(RUN) benchmarks/lossless.py --networks $(NETWORKS) --jobs $(WORKERS)

site: $(READY)  ## Build the documentation as a site, into out/site.
	@$(RUN) -m mkdocs build --quiet

wheel: $(READY)  ## Build a wheel into dist.
	@$(call fresh_sources)
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@$(call fresh_sources)
	@ls dist/*.whl

clean:  ## Remove .venv, builds, results and caches.
	rm -rf $(VENV) build dist out *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What setuptools leaves behind in the source tree. A later build would pack modules from it that
# no longer exist.
fresh_sources = rm -rf build/lib build/bdist.* *.egg-info

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (PyTorch is large: 6.5 GB and some minutes, once) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@$(call fresh_sources)
	@touch $@

# apple-upscale asks for PyTorch 2.0.1, but works with ours; so dependencies stay out.
$(BENCH_READY): $(READY)
	@$(PIP) install --quiet --no-deps -c constraints.txt apple-upscale torch-pruning
	@touch $@
