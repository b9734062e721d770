# Every chore of this repository. `make` alone lists them.
# Written for GNU make 3.81 and later, so that the make of a Mac will do.

VENV       ?= .venv
# The first Python that fits. `make run PYTHON=/path/to/python` names another.
PYTHON     ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
                "$$p" -c '$(FITS)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
# Another index to look for torch on. Its CPU build, a tenth of the size:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
EXPERIMENT ?= digits-cnn
PORT       ?= 8000
GRPC_PORT  ?= $(shell expr $(PORT) + 1)
UI_PORT    ?= 5000
KILLS      ?= 200
STOPS      ?= 100
# Passed to pytest: make test ARGS="-k bundle -x"
ARGS       ?=
# Whole files to each worker, since a file's tests share what they set up: tests/distribution.py.
PARALLEL   ?= -n auto --dist loadfile --no-loadscope-reorder

ENDURANCE = tests/serving/test_malformed_rpc.py::test_damaged_messages_never_harm_the_server \
    tests/serving/test_control.py::test_cycles_of_load_and_unload_leave_nothing_behind \
    $(wildcard tests/endurance/test_*.py)

HOME_OF_VENV := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))
BIN   := $(VENV)/bin
STAMP := $(VENV)/.ready
LOCKS := requirements/train.txt requirements/torch.txt
FITS   = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PIP    = $(BIN)/python -m pip -qq --disable-pip-version-check install --no-compile

# dvc.yaml says plain `python`: it means this environment's. Nothing here reports home.
# Containers often tell Python to keep no bytecode; every import of torch would then cost seconds.
export PATH := $(HOME_OF_VENV)/bin:$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export ORT_DISABLE_TELEMETRY := 1
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-cuda faults exports lint format serve ui bench conformance bench-recipes bench-serving bench-growth bench-cuda endure fuzz-openapi lock clean distclean

help: ## list the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## install the pinned dependencies into .venv, once

run: $(STAMP) ## train, prove and track every experiment (only what changed)
	@test -e .git || $(BIN)/dvc config --local core.no_scm true
	@$(BIN)/slipway check
	@$(BIN)/dvc repro
	@$(BIN)/slipway summary

test: $(STAMP) ## run every test
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: $(STAMP) ## run the tests that take no more than a moment
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

faults: $(STAMP) ## kill workers and stop servers under load, at length: KILLS=200 STOPS=100
	@SLIPWAY_KILLS=$(KILLS) SLIPWAY_STOPS=$(STOPS) $(BIN)/python -m pytest -s -q tests/serving/test_faults.py

exports: $(STAMP) ## export every model in every choice and task, and hold it against torch
	@SLIPWAY_EVERY_EXPORT=1 $(BIN)/python -m pytest -o timeout=7200 $(PARALLEL) tests/test_plugins.py $(ARGS)

lint: $(STAMP) ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy pipeline stages serving

format: $(STAMP) ## rewrite the code in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

serve: $(STAMP) ## serve a bundle: make serve EXPERIMENT=digits-cnn PORT=8000 GRPC_PORT=8001
	@test -d "bundles/$(EXPERIMENT)" || { exec >&2; \
	  echo "No bundle at bundles/$(EXPERIMENT): 'make run' builds it, EXPERIMENT=name picks another."; exit 1; }
	@$(BIN)/slipway serve "bundles/$(EXPERIMENT)" --port $(PORT) --grpc-port $(GRPC_PORT)

ui: $(STAMP) ## open MLflow on this project's runs: make ui UI_PORT=5000
	@$(BIN)/python -m stages.commands.ui --port $(UI_PORT)

bench: $(STAMP) ## run the benchmarks, each in a process of its own
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

bench-recipes: $(STAMP) ## train every recipe, three seeds, beside its figure: DATA=FOLDER, ARGS=--quick for one epoch
	@$(BIN)/python benchmarks/bench_accuracy.py --recipe $(or $(RECIPE),all) --seeds 3 \
	  $(if $(DATA),--shared "$(DATA)") --results .build/recipes/results.jsonl $(ARGS)

bench-serving: $(STAMP) ## the server beside its peers: PEERS="mosec kserve" ARGS=--install
	@$(BIN)/python benchmarks/bench_serving.py
	@$(BIN)/python benchmarks/bench_peers.py $(PEERS) --seconds 2 --rounds 1 $(ARGS)

bench-growth: $(STAMP) ## the server as connections, rows, weights and models grow: ARGS=--quick, ARGS="--picture FILE"
	@$(BIN)/python benchmarks/bench_growth.py $(ARGS)

# One file after the other: they would be in each other's way. An hour of soak: SLIPWAY_SOAK=3600.
endure: $(STAMP) ## hold the server under fault and load, in full: an hour (FILES="..." for some)
	@mkdir -p .build && rm -f .build/endurance.jsonl
	@export SLIPWAY_SCALE=full SLIPWAY_FUZZ=10000 SLIPWAY_FIGURES="$(CURDIR)/.build/endurance.jsonl"; \
	failed=; for file in $(or $(FILES),$(ENDURANCE)); do echo "== $$file"; \
	  $(BIN)/python -m pytest -q -s -o timeout=7200 --cycles 300 $$file $(ARGS) || failed="$$failed $$file"; \
	done; \
	$(BIN)/python -m tests.endurance.figures .build/endurance.jsonl; \
	test -z "$$failed" || { echo "Failed:$$failed"; exit 1; }

fuzz-openapi: $(STAMP) ## send a server what schemathesis makes up from its OpenAPI document
	@test -x .venv-fuzz/bin/st || { $(BIN)/python -m venv .venv-fuzz \
	  && .venv-fuzz/bin/pip -qq install 'schemathesis>=4.32,<5'; }
	@$(BIN)/python -m tests.serving.fuzz_openapi "$(CURDIR)/.venv-fuzz/bin/st"

# Others' clients pin what ours cannot have: an environment of their own, made again when pins change.
CONFORMANCE := .build/conformance
$(CONFORMANCE)/.ready: tests/conformance/requirements.txt $(STAMP)
	@rm -f $@
	@"$(PYTHON)" -m venv --clear $(CONFORMANCE)
	@echo "Setting up $(CONFORMANCE): tritonclient and kserve, 600 MB ..."
	@$(CONFORMANCE)/bin/python -m pip -qq --disable-pip-version-check install --require-hashes \
	  -r tests/conformance/requirements.txt
	@touch $@

conformance: $(STAMP) $(CONFORMANCE)/.ready ## ask a server with others' clients; writes docs/conformance.md
	@SLIPWAY_CONFORMANCE_REPORT=docs/conformance.md \
	  $(BIN)/python -m pytest tests/conformance -q -s $(ARGS)

# A second environment: the CUDA wheel of ONNX Runtime lies over the CPU one. See docs/cuda.md.
CUDA_VENV ?= .venv-cuda
CUDA_LIBS ?= [cuda,cudnn]
CUDA_STAMP := $(CUDA_VENV)/.ready
$(CUDA_STAMP): pyproject.toml
	@"$(PYTHON)" -m venv --clear $(CUDA_VENV)
	@$(CUDA_VENV)/bin/python -m pip -qq --disable-pip-version-check install --editable '.[serve-cuda,dev]' \
	  'onnxruntime-gpu$(CUDA_LIBS)>=1.31,<1.32' 'onnx>=1.23,<1.24' 'ruamel.yaml>=0.19.1,<0.20'
	@touch $@

test-cuda: $(CUDA_STAMP) ## run the tests that need a CUDA device
	@$(CUDA_VENV)/bin/python -m pytest tests/cuda -rs $(ARGS)

bench-cuda: $(CUDA_STAMP) ## time a bundle on the CPU and on a CUDA device
	@$(CUDA_VENV)/bin/python benchmarks/bench_cuda.py bundles/$(EXPERIMENT) --require $(ARGS)

# The stamp is written last, so a set-up that failed is taken up again by the next make. `venv` notes
# the folder it was made in: one copied elsewhere, whose scripts would still run the old place's
# Python, is seen by that and rebuilt. Bytecode is written at the end, on all cores, rather than by pip
# on one or by the first import of each of a run's many processes. Some files are templates: no Python.
MADE_HERE = grep -qsF -- "-m venv --clear $(HOME_OF_VENV)" $(VENV)/pyvenv.cfg
ifneq ($(shell $(MADE_HERE) && echo yes),yes)
.PHONY: $(STAMP)
endif
$(STAMP): $(LOCKS) pyproject.toml
	@test -n "$(PYTHON)" || { exec >&2; \
	  echo "Slipway needs Python 3.11, 3.12 or 3.13, and found none (python3 is: $$(python3 -V 2>&1))."; \
	  echo "Install one, or name it: make run PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c '$(FITS)' || { exec >&2; \
	  echo "Slipway needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { exec >&2; \
	  echo "$(PYTHON) cannot make virtual environments: it lacks 'ensurepip'."; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@rm -f $@
	@{ $(MADE_HERE) && $(BIN)/python -m pip --version; } >/dev/null 2>&1 \
	  || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "Setting up $(VENV): 2 GB with torch's CPU build, some 5 GB more with CUDA's;"
	@echo "about a minute once downloaded ..."
	@$(PIP) --no-deps --require-hashes -r requirements/train.txt
	@$(PIP) --no-warn-conflicts $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@echo "... compiling, so that no run has to ..."
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing)/' $(VENV)/lib || true
	@touch $@
	@echo "... ready"

# uv only resolves here. Present pins are kept: UPGRADE=1 takes the newest that the bounds allow.
lock: RESOLVE = "$$uv/bin/uv" pip compile --quiet pyproject.toml --config-file requirements/lock.toml \
    --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
lock: ## pin the dependencies anew (UPGRADE=1 for newer ones)
	@uv=$$(mktemp -d) && trap 'rm -rf "$$uv"' EXIT \
	&& "$(PYTHON)" -m venv "$$uv" && "$$uv/bin/pip" -qq install 'uv>=0.13,<0.14' \
	&& $(RESOLVE) --extra train --extra serve --extra dev -c requirements/torch.txt \
	     --no-emit-package torch -o requirements/train.txt \
	&& $(RESOLVE) --extra serve -c requirements/train.txt -o requirements/serve.txt \
	&& $(RESOLVE) --extra serve-cuda -c requirements/train.txt -o requirements/serve-cuda.txt \
	&& $(subst pyproject.toml,tests/conformance/requirements.in,$(RESOLVE)) \
	     -o tests/conformance/requirements.txt
	@echo "Pinned in requirements/. Now: make test"

clean: ## delete what builds and tests wrote; DVC's cache brings the results back
	@rm -rf build bundles .build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also delete .venv, DVC's cache and the local MLflow runs
	@rm -rf $(VENV) $(CUDA_VENV) .dvc/cache .dvc/tmp .dvc/config.local mlflow.db* mlartifacts mlruns
