# For GNU make 3.81 and later, on Linux and macOS.
VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CHECK := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))
# The first interpreter that will do; `make env PYTHON=/path/to/python` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do \
	"$$p" -c '$(CHECK)' >/dev/null 2>&1 && echo "$$p" && break; done)
# Options of the sweep, for example ARGS="-p seed=1 --out runs/other".
ARGS ?=
# Domains of LAION-Beyond for `make data`, all nine if empty; DATA_ARGS="--to /data/LAION-Beyond".
DOMAINS ?=
DATA_ARGS ?=
# Options of pytest, for example PYTEST_ARGS="-k clustering".
PYTEST_ARGS ?=
NOTEBOOKS = $(wildcard notebooks/[0-9]*.ipynb)
# Notebook 06 makes the calls of 04 four hundred times; `make test CHECKED=notebooks/06*` runs it too.
CHECKED ?= $(filter-out notebooks/06_%,$(NOTEBOOKS))
# The longest first; a notebook's cells stay in one process.
CHECKED := $(filter notebooks/04_%,$(CHECKED)) $(filter-out notebooks/04_%,$(CHECKED))
PROCESSES ?= -n 2 --dist loadfile --no-loadscope-reorder
# Tests of more than ten seconds, and all examples of hypothesis, run in the workflow; here by
# `make test SLOW= PYTEST_ARGS="--hypothesis-profile all"`.
SLOW ?= -m "not slow"
NBVAL = --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg

# Threads that wait by spinning starve whatever else runs on a laptop's cores.
export OMP_WAIT_POLICY ?= passive
# Said by tqdm to kernels that import a dependency before lbutils, which silences it.
export PYTHONWARNINGS ?= ignore:IProgress not found

.DEFAULT_GOAL := help
.PHONY: env run full test faults bench site data clean distclean help

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1 | \2/p' Makefile | awk -F '|' '{printf "%-16s%s\n", $$1, $$2}'

env: $(READY) ## make .venv with the pinned packages, and check it
	@$(BIN)/python -m lbutils

run: $(READY) ## run the notebooks in minutes, with few draws; results go to runs/mini--quick/index.html
	@$(BIN)/python -m lbutils run $(ARGS)

full: $(READY) ## run them as their committed outputs show; what is done is kept, in runs/mini
	@$(BIN)/python -m lbutils full $(ARGS)

# Ten draws of all methods on nine domains take minutes; whether notebooks run shows with fewer.
test: export LBUTILS_PROFILE ?= test
test: $(READY) ## everything that CI runs: ruff, mypy, unit tests, notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lbutils
	$(BIN)/python -m pytest $(CHECKED) tests $(if $(CHECKED),$(NBVAL)) $(SLOW) $(PROCESSES) $(PYTEST_ARGS)

# Neither this file nor those of bench are called test_*, so that `make test` leaves them out.
faults: $(READY) ## plant faults in what makes numbers and figures, and tell those that no test finds; ARGS="--number 50 lbutils/measure/metrics.py"
	$(BIN)/python tests/faults.py $(ARGS)

bench: $(READY) ## speed: name tuning beside the plain procedure, the table of rivals, extraction, sweeps, screening of 20 million captions (some fifteen minutes)
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py --benchmark-columns=min,median,rounds $(PYTEST_ARGS)

# Beside the pinned packages, which stay as they are: docs/requirements.lock agrees with them.
site: $(READY) ## the notebooks and the reference as static pages, in runs/site/html
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r docs/requirements.lock
	@$(BIN)/python docs/build.py

# Never part of another target: 15 GB, unless DOMAINS="Animals Pokemon" names some.
data: $(READY) ## download LAION-Beyond, or DOMAINS="Animals Pokemon" of it, and check it
	@$(BIN)/python -m lbutils download $(DOMAINS) $(DATA_ARGS)

clean: ## remove the miniature's results, caches and build files
	rm -rf runs/mini runs/mini--* runs/sweeps/mini runs/cache runs/site build lbutils.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find lbutils tests data notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove the environment as well
	rm -rf $(VENV)

# Touched last, so that an installation cut short is taken up again. uv, itself one of the pinned packages,
# installs the others at once and without a copy of what its cache holds. It knows no settings of pip's, such
# as a company's index; pip then does it. Modules are compiled here, once: a notebook or a test that has to
# compile torch and its like for itself, as where PYTHONDONTWRITEBYTECODE is set, imports twice as long.
$(READY): requirements.lock pyproject.toml
	@"$(PYTHON)" -c '$(CHECK)' 2>/dev/null || { echo 'Python 3.10 to 3.14 is needed; name one with: make env PYTHON=python3.12' >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c '$(CHECK)' && $(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| { rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV); } \
		|| { rm -rf $(VENV); echo 'python -m venv failed; on Debian and Ubuntu: sudo apt install python3-venv' >&2; exit 1; }
	@echo 'installing the pinned packages into $(VENV) (about 5 GB on Linux, once)'
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >$(VENV)/uv.txt
	@$(PIP) --no-deps --require-hashes -r $(VENV)/uv.txt
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock \
		|| { echo 'uv did not install the packages; trying pip' >&2; \
		$(PIP) --no-deps --require-hashes -r requirements.lock; }
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q lbutils
	@touch $(READY)
