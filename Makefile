# Each target sets itself up: it makes a virtual environment, installs what it needs, and installs
# again only when pyproject.toml changes. Nothing but python3 (3.11 or newer), git and make is needed.
#
#   make test PYTHON=python3.12     choose the interpreter
#   make demo MLX_BACKEND=cuda13    choose MLX's backend on Linux: cpu (default), cuda12, cuda13
#   make test PYTEST_ARGS="-k cone" pass options to pytest

PYTHON ?= python3
PYTEST_ARGS ?= --numprocesses=auto
DEMO_ARGS ?=
COMPARE_ARGS ?=

EXAMPLES := $(filter-out examples/data_parallel.py examples/demo.py,$(wildcard examples/*.py))

# Plain mlx is complete on macOS; on Linux the backend is a package of its own.
ifeq ($(shell uname -s),Linux)
MLX_BACKEND ?= cpu
else
MLX_BACKEND ?=
endif

# Backends exclude one another, so each has its own environment.
VENV ?= .venv$(if $(filter-out cpu,$(MLX_BACKEND)),-$(MLX_BACKEND))
PY := $(VENV)/bin/python

comma := ,
backend := $(if $(MLX_BACKEND),$(MLX_BACKEND)$(comma))
# $(call install,EXTRAS) installs the project, editable, with these extras.
define install
@echo "==> installing mlxcone[$(backend)$(1)] into $(VENV) (takes a minute or two the first time)"
@$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$(backend)$(1)]"
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench compare examples notebooks docs coverage floors package
.PHONY: nightly thorough clean

help:
	@echo "make demo    learn the penalties of a lasso through 64 convex problems, and check the answer"
	@echo "make test    run the test suite"
	@echo "make lint    ruff and pyright"
	@echo "make format  let ruff rewrite the code"
	@echo "make bench   measure accuracy, transforms, random programs and a large layer"
	@echo "make compare time seven layers beside the peers, and see where the time goes"
	@echo "make examples run every example"
	@echo "make notebooks the same, as notebooks"
	@echo "make docs    build the documentation into build/site"
	@echo "make coverage run the test suite and list the lines that it does not reach"
	@echo "make floors  run the test suite with the oldest versions that are declared"
	@echo "make nightly examples, coverage and floors"
	@echo "make thorough measure correctness at full length (hours); DATA=DIRECTORY for real problems, too"
	@echo "make package build wheel and sdist, and try both in empty environments"
	@echo "make clean   remove environments, caches and output"

demo: $(VENV)/.installed-demo
	@$(PY) examples/demo.py $(DEMO_ARGS)

test: $(VENV)/.installed-test
	@$(PY) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint
	@echo "==> ruff check"
	@$(PY) -m ruff check .
	@echo "==> ruff format --check"
	@$(PY) -m ruff format --check .
	@echo "==> pyright"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.installed-lint
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: $(VENV)/.installed-demo
	@$(PY) bench/accuracy.py
	@$(PY) bench/accuracy.py --dtype float64
	@$(PY) bench/transforms.py
	@$(PY) bench/random_programs.py
	@$(PY) bench/large_layer.py

compare: $(VENV)/.installed-peers
	@$(PY) bench/compare.py $(COMPARE_ARGS)
	@$(PY) bench/where.py

examples: $(VENV)/.installed-examples
	@for script in $(EXAMPLES); do echo "==> $$script"; MPLBACKEND=Agg $(PY) $$script || exit 1; done
	@$(VENV)/bin/mlx.launch -n 2 $(PY) examples/data_parallel.py

# Of a progress bar only the last line is kept.
notebooks: $(VENV)/.installed-notebooks
	@$(PY) -m ipykernel install --sys-prefix --name python3 > /dev/null
	@for script in $(EXAMPLES); do echo "==> $$script"; \
	    $(VENV)/bin/jupytext --quiet --to notebook --execute --run-path . $$script \
	    --output examples/notebooks/$$(basename $$script .py).ipynb || exit 1; done
	@$(VENV)/bin/jupyter-nbconvert --log-level=WARN --to notebook --inplace --coalesce-streams \
	    examples/notebooks/*.ipynb

# Material's notice of a later mkdocs is none of ours.
docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "documentation in build/site"

coverage: $(VENV)/.installed-test
	@$(PY) -m pytest $(PYTEST_ARGS) --cov --cov-report=term-missing --cov-fail-under=95

floors:
	@PYTHON=$(PYTHON) sh tools/floors.sh

package: $(VENV)/.installed-lint
	@PY=$(PY) PYTHON=$(PYTHON) MLX_BACKEND=$(MLX_BACKEND) sh tools/package.sh

# What takes too long for every change.
nightly: examples coverage floors

thorough: $(VENV)/.installed-test $(VENV)/.installed-demo
	@PY=$(PY) DATA=$(DATA) sh tools/thorough.sh

clean:
	rm -rf .venv .venv-* build dist examples/output bench/output
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pyright reads the types of what is installed, so the linters' set includes the tests'.
$(VENV)/.installed-demo: pyproject.toml | $(PY)
	$(call install,bench$(comma)plot)

# qpth asks for an older NumPy than CVXPY has, and works with the newer one.
$(VENV)/.installed-peers: pyproject.toml | $(PY)
	$(call install,bench$(comma)peers)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps "qpth>=0.0.18"

$(VENV)/.installed-examples: pyproject.toml | $(PY)
	$(call install,examples)

$(VENV)/.installed-notebooks: pyproject.toml | $(PY)
	$(call install,examples$(comma)notebooks)

$(VENV)/.installed-docs: pyproject.toml | $(PY)
	$(call install,docs)

$(VENV)/.installed-test: pyproject.toml | $(PY)
	$(call install,test)

$(VENV)/.installed-lint: pyproject.toml | $(PY)
	$(call install,dev$(comma)plot$(comma)test)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "mlxcone needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)"; \
	    echo "Name another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "==> making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "Python's venv module does not work; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
