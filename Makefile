# From a StarCoder2 checkpoint to a bundle for a device. `make` alone explains itself.

MODEL   ?= examples/demo
FORMATS ?= gguf
DEVICE  ?=
BUDGET  ?=
CTX     ?=
OUT     ?= artifacts
LICENCE ?=
# the demo comes with its text; calibrate a real model on the kind of code that it is to write
SOURCES ?= $(if $(filter examples/demo,$(MODEL)),examples/demo/calibration)
PARTS   ?=
MINUTES ?=
TARGETS ?=
COUNT   ?= 1000
PYTHON  ?= python3

VENV     := .venv
STARPACK := $(VENV)/bin/starpack
PIP      := $(VENV)/bin/pip --disable-pip-version-check
WHEELS   := build/wheels
PEERS    ?= build/peers
RAY      := build/ray
SCHEMA   := $(VENV)/bin/check-jsonschema -q
SCRIPTS  := packager/bundle/files/install packager/bundle/files/run .ci/run
MEASURED := $(wildcard profiles/measured/*.json)
ENGINE   := packager/engine/build.py packager/engine/llama-cpp-python.patch
WANTED    = '$(MODEL)' --formats '$(FORMATS)' --out '$(OUT)' \
            $(if $(SOURCES),--sources '$(SOURCES)')
PLAN      = $(WANTED) \
            $(if $(DEVICE),--device '$(DEVICE)') $(if $(BUDGET),--budget '$(BUDGET)') \
            $(if $(CTX),--context '$(CTX)')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup wheels plan matrix convert profile select bundle verify test test-fast test-peers \
        test-ray fuzz kills soak bench gpu-check check clean distclean

help: ## show this text
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@echo "Targets (each does first what it needs, set-up included):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'
	@echo
	@echo "Variables, with their values now:"
	@echo "  MODEL       checkpoint folder                     $(MODEL)"
	@echo "  FORMATS     gguf, gptq, onnx, FORMAT:RECIPE,...   $(FORMATS)"
	@echo "  SOURCES     source code to calibrate gptq on      $(or $(SOURCES),(none))"
	@echo "  DEVICE      where it is to run: a name or a file  $(or $(DEVICE),(this machine))"
	@echo "  BUDGET      inline, relaxed, batch or a file      $(or $(BUDGET),(no limits))"
	@echo "  CTX         context wanted, in tokens             $(or $(CTX),(16384, or the model's own))"
	@echo "  OUT         folder for everything that is made    $(OUT)"
	@echo "  LICENCE     the model's licence text for the bundle   $(or $(LICENCE),(in MODEL))"
	@echo "  PARTS       of gpu-check                          $(or $(PARTS),(all))"
	@echo "  MINUTES     of fuzz, or of soak                   $(or $(MINUTES),10; 60)"
	@echo "  TARGETS     of fuzz                               $(or $(TARGETS),(all))"
	@echo "  COUNT       of kills, in all                      $(COUNT)"
	@echo "  PYTHON      Python 3.11 or newer for the set-up   $(PYTHON)"

setup: $(VENV)/.engine ## make .venv with all tools and engines (first time: 5 to 10 minutes)

# A half-made environment has no stamp, so the next run completes it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable '.[test,check,engine-build]'
	@touch $@

$(VENV)/.engine: $(VENV)/.installed $(ENGINE)
	$(STARPACK) wheels --out build
	$(PIP) install --no-index --no-deps --force-reinstall $(WHEELS)/llama_cpp_python-*+starpack2-*.whl
	@touch $@

wheels: $(VENV)/.installed ## build the GGUF engine's wheel, or take it from the cache
	$(STARPACK) wheels --out build

plan: setup ## choose a model and a recipe for DEVICE from data alone
	$(STARPACK) plan --device '$(DEVICE)' $(if $(BUDGET),--budget '$(BUDGET)')

matrix: setup ## the same for every device, inline and relaxed
	$(STARPACK) matrix

convert: setup ## convert MODEL to every recipe of FORMATS
	$(STARPACK) convert $(WANTED)

profile: setup ## measure each artifact: window, quality, memory, time
	$(STARPACK) profile $(PLAN)

select: setup ## choose the best artifact that fits BUDGET on DEVICE; writes OUT/report.html
	$(STARPACK) select $(PLAN)

bundle: setup ## all of it: convert, measure, select, pack, then show the bundle at work
	$(STARPACK) bundle $(PLAN) $(if $(LICENCE),--licence-file '$(LICENCE)')

verify: setup ## check the bundle in OUT against its hashes
	$(STARPACK) verify '$(OUT)/bundle'

test: setup ## run all tests
	$(VENV)/bin/python -m pytest

test-fast: $(VENV)/.installed ## run the tests that need no engine, torch, browser or bundle: a minute
	$(VENV)/bin/python -m pytest --fast --numprocesses 2 --dist loadfile

test-peers: $(PEERS)/.installed ## run the tests beside GPTQModel, in an environment of its own
	$(PEERS)/bin/python -m pytest tests/peers

# GPTQModel is built from its source, and that asks for torch to be there first.
$(PEERS)/.installed: tests/peers/requirements.txt tests/peers/constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --constraint tests/peers/constraints.txt torch setuptools wheel ninja
	$(PEERS)/bin/pip install --constraint tests/peers/constraints.txt --no-build-isolation \
	    --requirement tests/peers/requirements.txt

test-ray: $(RAY)/.installed ## try deploy/ on a Ray cluster of this machine, with the bundle in OUT
	PYTHONPATH=. RAY_USAGE_STATS_ENABLED=0 $(RAY)/bin/python -m deploy.try_ray '$(OUT)/bundle'

# Ray is large and for this alone, so it has an environment of its own.
$(RAY)/.installed: deploy/requirements.txt $(OUT)/bundle/bundle.json
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --requirement deploy/requirements.txt
	$(RAY)/bin/pip install --no-deps '$(OUT)'/bundle/wheels/*.whl
	@touch $@

fuzz: setup ## feed hostile input to what reads files and requests: docs/hardening.md
	PYTHONPATH=. $(VENV)/bin/python -m tests.fuzz --minutes '$(or $(MINUTES),10)' \
	    $(if $(TARGETS),--targets '$(TARGETS)')

kills: setup ## kill each command COUNT times in all, and look at what is left: docs/hardening.md
	PYTHONPATH=. $(VENV)/bin/python -m tests.support.kills --count '$(COUNT)' \
	    --keep build/kills.json

soak: setup ## serve the bundle in OUT to clients that behave badly for MINUTES: docs/hardening.md
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.soak '$(OUT)/bundle' --minutes '$(or $(MINUTES),60)'

bench: setup ## the figures of `profile` as JSON
	$(STARPACK) profile $(PLAN) --json

gpu-check: $(VENV)/.installed ## measure what a CUDA GPU here does, in ten minutes: profiles/measured/README.md
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.gpu_check $(if $(PARTS),--parts '$(PARTS)')

check: $(VENV)/.installed ## check style, types, spelling, shell scripts and profiles
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
	$(VENV)/bin/shellcheck $(SCRIPTS)
	$(SCHEMA) --check-metaschema profiles/*.schema.json
	$(SCHEMA) --schemafile profiles/device.schema.json profiles/devices/*.json
	$(SCHEMA) --schemafile profiles/budget.schema.json profiles/budgets/*.json
	$(if $(MEASURED),$(SCHEMA) --schemafile profiles/measured.schema.json $(MEASURED))

clean: ## remove what was made here (not another OUT); keep .venv and the cached engine
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find artifacts -mindepth 1 -maxdepth 1 -not -name README.md -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)
