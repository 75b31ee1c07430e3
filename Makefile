# Each target is one line. The first one that is used sets up .venv from requirements/.
BIN = .venv/bin
UNASKED = Created|State|Executor|^(data|src|pipeline|metrics)/|psnr_(best|pooled|over_grey_)|raw_|rmse_
DVC = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc

help:                    ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 14

install: .venv/ready     ## set up .venv; every other target does so as well

repro: unlock            ## the whole pipeline for the chosen model
	@echo "The pipeline of params.yaml: on the sample it takes about a minute on two cores."
	@$(DVC) repro
	@echo "Open metrics/report.html. Next: source .venv/bin/activate; dvc exp run -S model=vae"

zoo: unlock              ## every model of params.yaml, then the leaderboard
	@$(DVC) repro pipeline/zoo/dvc.yaml

experiments: .venv/ready ## every experiment: the main metrics and the parameters that differ
	@$(DVC) exp show --only-changed --sort-by psnr_over_grey --sort-order desc \
	  --drop '$(UNASKED)|^mae$$|_spread|_difference|^images$$|grey_truths'

test: .venv/dev          ## the tests but the slow ones, in 3 minutes on two cores; make check runs all
	@$(BIN)/python -m pytest -m "not slow"

faults: .venv/dev        ## the long form of the tests of faults: 50 kills, 20,000 damaged inputs of each kind
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/kills.py 50
	@$(BIN)/python -m pytest --hypothesis-profile=long tests/test_fuzz.py

bench: .venv/dev         ## ours against what one would otherwise write: benchmarks/README.md
	@$(BIN)/python -m benchmarks.bench && $(BIN)/python -m benchmarks.downloads

gpu: .venv/ready         ## what only a GPU can show
	@$(BIN)/python -m benchmarks.gpu

check: .venv/dev         ## lint, types, known vulnerabilities and tests: what CI runs
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && .ci/audit && $(BIN)/python -m pytest

deps: .venv/ready        ## write into dvc.yaml which sources each stage runs
	@$(BIN)/python -m pipeline.imports

unlock: .venv/ready      ## remove what a killed DVC left of its locks
	@$(BIN)/python -m pipeline.unlock

# On Linux the package index brings several GB of CUDA: without a GPU, take PyTorch's CPU build.
INDEX = --no-deps --extra-index-url https://download.pytorch.org/whl/cpu
CPU = $(if $(filter Linux,$(shell uname)),$(if $(shell command -v nvidia-smi),,$(INDEX)))
PIP = $(BIN)/python -m pip install --disable-pip-version-check

.venv/torch: requirements/torch.txt
	@python3 -m venv .venv && $(PIP) --retries 1 --timeout 15 $(CPU) -r requirements/torch.txt && touch $@

.venv/ready: requirements/pipeline.txt .venv/torch
	@echo "Installing 127 packages, 1.5 GB with PyTorch, into .venv"
	@$(PIP) --require-hashes -r requirements/pipeline.txt && $(PIP) --no-deps --editable . && touch $@

.venv/dev: requirements/dev.txt .venv/ready
	@echo "Installing the tests' packages, 30 more"
	@$(PIP) --require-hashes -r requirements/dev.txt && touch $@

pins:                    ## write requirements/*.txt anew from pyproject.toml; needs uv
	@uv pip compile -q pyproject.toml -o requirements/color.txt
	@uv pip compile -q pyproject.toml --extra pipeline -o requirements/pipeline.txt
	@uv pip compile -q pyproject.toml --extra pipeline --extra dev -o requirements/dev.txt

.PHONY: help install repro zoo unlock experiments test faults bench gpu check deps pins
