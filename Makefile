# From a StarCoder2 checkpoint to a bundle for a device. `make` alone explains itself.

MODEL   ?= examples/demo
FORMATS ?= gguf
DEVICE  ?=
BUDGET  ?=
CTX     ?=
OUT     ?= artifacts
LICENCE ?=
# the demo is calibrated on our own code; a real model on the kind of code that it is to write
SOURCES ?= $(if $(filter examples/demo,$(MODEL)),packager)
PYTHON  ?= python3

VENV     := .venv
STARPACK := $(VENV)/bin/starpack
PIP      := $(VENV)/bin/pip --disable-pip-version-check
WHEELS   := build/wheels
RAY      := build/ray
ENGINE   := packager/wheels.py packager/engine/llama-cpp-python.patch
WANTED    = '$(MODEL)' --formats '$(FORMATS)' --out '$(OUT)' \
            $(if $(SOURCES),--sources '$(SOURCES)')
PLAN      = $(WANTED) \
            $(if $(DEVICE),--device '$(DEVICE)') $(if $(BUDGET),--budget '$(BUDGET)') \
            $(if $(CTX),--context '$(CTX)')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup wheels convert profile select bundle verify test test-ray bench lint clean \
        distclean

help: ## show this text
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@echo "Targets (each does first what it needs, set-up included):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-12s%s\n", $$1, $$2}'
	@echo
	@echo "Variables, with their values now:"
	@echo "  MODEL       checkpoint folder                     $(MODEL)"
	@echo "  FORMATS     gguf, gptq, onnx, FORMAT:RECIPE,...   $(FORMATS)"
	@echo "  SOURCES     source code to calibrate gptq on      $(or $(SOURCES),(none))"
	@echo "  DEVICE      device to measure on                  $(or $(DEVICE),(this machine))"
	@echo "  BUDGET      JSON file of limits                   $(or $(BUDGET),(no limits))"
	@echo "  CTX         context wanted, in tokens             $(or $(CTX),(16384, or the model's own))"
	@echo "  OUT         folder for everything that is made    $(OUT)"
	@echo "  LICENCE     the model's licence text for the bundle   $(or $(LICENCE),(in MODEL))"
	@echo "  PYTHON      Python 3.11 or newer for the set-up   $(PYTHON)"

setup: $(VENV)/.engine ## make .venv with all tools and engines (first time: 5 to 10 minutes)

# A half-made environment has no stamp, so the next run completes it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable '.[test,engine-build]'
	@touch $@

$(VENV)/.engine: $(VENV)/.installed $(ENGINE)
	$(STARPACK) wheels --out build
	$(PIP) install --no-index --no-deps --force-reinstall $(WHEELS)/llama_cpp_python-*+starpack1-*.whl
	@touch $@

wheels: $(VENV)/.installed ## build the GGUF engine's wheel, or take it from the cache
	$(STARPACK) wheels --out build

convert: setup ## convert MODEL to every recipe of FORMATS
	$(STARPACK) convert $(WANTED)

profile: setup ## measure each artifact: memory, time, divergence, window
	$(STARPACK) profile $(PLAN)

select: setup ## choose the best artifact that fits BUDGET on DEVICE
	$(STARPACK) select $(PLAN)

bundle: setup ## all of it: convert, measure, select, pack, then show the bundle at work
	$(STARPACK) bundle $(PLAN) $(if $(LICENCE),--licence-file '$(LICENCE)')

verify: setup ## check the bundle in OUT against its hashes
	$(STARPACK) verify '$(OUT)/bundle'

test: setup ## run the tests
	$(VENV)/bin/python -m pytest

test-ray: $(RAY)/.installed ## try deploy/ on a Ray cluster of this machine, with the bundle in OUT
	PYTHONPATH=. RAY_USAGE_STATS_ENABLED=0 $(RAY)/bin/python -m deploy.try_ray '$(OUT)/bundle'

# Ray is large and for this alone, so it has an environment of its own.
$(RAY)/.installed: deploy/requirements.txt $(OUT)/bundle/bundle.json
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --requirement deploy/requirements.txt
	$(RAY)/bin/pip install --no-deps '$(OUT)'/bundle/wheels/*.whl
	@touch $@

bench: setup ## the figures of `profile` as JSON
	$(STARPACK) profile $(PLAN) --json

lint: setup ## check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean: ## remove what was made here (not another OUT); keep .venv and the cached engine
	rm -rf build *.egg-info .pytest_cache .ruff_cache
	find artifacts -mindepth 1 -maxdepth 1 -not -name README.md -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)
