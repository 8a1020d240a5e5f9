# Two commands: `make demo` shows the idea, three trainings side by side; `make test` checks everything.
# Both set up their own .venv first (Python 3.11 or newer and pip are all they need).

PYTHON ?= python3
# an index with torch's small CPU build, where the default one has the CUDA build only
TORCH_INDEX ?=
DEMO ?= demo

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
SIMULATORS := .venv-simulators
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
RUNTIME := OMP_NUM_THREADS=1

.PHONY: demo demo-mujoco test test-simulators setup clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo         behaviour cloning, PPO and ADVISOR side by side on Poisoned Doors (about a minute)"
	@echo "make demo-mujoco  train a MuJoCo policy (about a minute), score it, draw its learning curve, film it"
	@echo "make test         lint, format check, types, tests"
	@echo "make test-simulators  the tests in mjlab, in a virtual environment of its own (another MuJoCo)"
	@echo "make setup        only the virtual environment"
	@echo "make clean        remove caches and the demos' results"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "understudy needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(INDEX) $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mujoco,envpool,demos,arrow,export,video,plot,dev]'
	touch $@

demo: $(STAMP)
	rm -rf $(DEMO)
	$(RUNTIME) $(BIN)/python examples/poisoned_doors_demo.py --output $(DEMO)

demo-mujoco: $(STAMP)
	rm -rf $(DEMO)
	$(RUNTIME) $(BIN)/understudy train demo-mujoco --run-dir $(DEMO)
	$(RUNTIME) $(BIN)/understudy evaluate $(DEMO) --episodes 20 --video $(DEMO)/video.mp4
	$(RUNTIME) $(BIN)/understudy plot $(DEMO) --output $(DEMO)/learning-curve.png
	@echo
	@echo "Learned. The curve is $(DEMO)/learning-curve.png, the film is $(DEMO)/video.mp4 (none if this machine cannot draw)."

test: $(STAMP)
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy
	$(RUNTIME) $(BIN)/python -m pytest -n 2 --dist worksteal

test-simulators: $(SIMULATORS)/.setup-done
	$(RUNTIME) $(SIMULATORS)/bin/python -m pytest tests/simulators tests/interop/test_rsl_rl_parity.py

# mjlab needs MuJoCo 3.11, so its environment shares only torch's version with constraints.txt
$(SIMULATORS)/.setup-done: pyproject.toml constraints.txt
	test -x $(SIMULATORS)/bin/python || $(PYTHON) -m venv $(SIMULATORS)
	$(SIMULATORS)/bin/python -m pip install --quiet $(INDEX) $(TORCH)
	$(SIMULATORS)/bin/python -m pip install --quiet $(TORCH) mjlab==1.6.0 pytest -e '.[mjlab,export,video]'
	touch $@

clean:
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
