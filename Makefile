# Two commands need nothing but Python 3.11+, make, git and the package registries: `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help setup demo up down images test test-vllm clients soak e2e bench bench-adapters bench-engine bench-gpu lint generate verify clean

UV_VERSION := 0.13.9
STATE ?= $(CURDIR)/.cache/local
# uv from PATH, else a copy of its own under .cache/.
UV := $(or $(shell command -v uv 2>/dev/null),.cache/uv/bin/uv)
RUN := .venv/bin/python

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.cache/uv/bin/uv:
	python3 -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

setup: .venv/.synced ## install everything into .venv

.venv/.synced: $(UV) pyproject.toml $(wildcard */pyproject.toml */*/pyproject.toml) uv.lock
	$(UV) sync --frozen --all-packages --all-extras --compile-bytecode
	@touch $@

demo: setup ## the whole tour: a local Kubernetes API, the chart, four adapters, real answers; ends by itself
	$(RUN) -m graft_local demo

up: setup ## the local cluster with Graft installed, left running
	$(RUN) -m graft_local up --state $(STATE)

down: setup ## end what `make up` started
	$(RUN) -m graft_local down --state $(STATE)

# Images are built with the first of docker, podman and buildah that works. IMAGE_ARGS goes to each build: a base image
# by digest (--build-arg BASE_IMAGE=python@sha256:…), a flavour of the runtime (--build-arg FLAVOUR=cpu, COMPILER=gcc).
IMAGE_TOOL = $(or $(shell for tool in docker podman buildah; do $$tool info >/dev/null 2>&1 && echo $$tool && break; done),\
	$(error images need docker, podman or buildah: none of them works here))
IMAGE_PREFIX ?=
IMAGE_TAG ?= $(shell sed -n 's/^appVersion: //p' charts/graft/Chart.yaml)
IMAGE_ARGS ?=

images: ## the images of operator and runtime
	tool="$(IMAGE_TOOL)"; for name in operator runtime; do \
	  $$tool build $(IMAGE_ARGS) --build-arg VERSION=$(IMAGE_TAG) --build-arg REVISION=$$(git rev-parse HEAD) \
	    -f $$name/Dockerfile -t $(IMAGE_PREFIX)graft-$$name:$(IMAGE_TAG) . || exit 1; \
	done

# Files of tests are shared out among so many processes. Those with a cluster come after it, one by one: they bound times.
WORKERS ?= 2

test: setup ## every test; those without a cluster in two processes (WORKERS=2)
	$(RUN) -m pytest -m "not clients" -n $(WORKERS) --dist loadfile --durations=20 --ignore=tests/cluster --ignore=tests/whole; failed=$$?; \
	$(RUN) -m pytest --durations=20 tests/cluster tests/whole && exit $$failed

test-vllm: setup ## a real pod on vLLM for CPUs, which is installed first (6 GB): answers, adapters that change
	python=$$($(RUN) bench/vllm_environment.py --uv $(UV)) && VLLM_PYTHON=$$python $(RUN) -m pytest tests/vllm

soak: setup ## ten minutes of good clients beside attacks on a real pod: what they notice; SOAK_ARGS="--seconds 60 --rounds 1"
	$(RUN) -m tests.soak --out .cache/soak.json $(SOAK_ARGS)

# The clients have an environment of their own: some of what they need clashes with what Graft needs.
CLIENTS := $(or $(GRAFT_CACHE),$(HOME)/.cache/graft)/clients
CLIENT_TESTS := tests/serving/pod/clients

$(CLIENTS)/.synced: $(UV) $(CLIENT_TESTS)/requirements.txt
	test -x $(CLIENTS)/bin/python || $(UV) venv --quiet --python $$(readlink -f $(RUN)) $(CLIENTS)
	$(UV) pip sync --quiet --compile-bytecode --python $(CLIENTS)/bin/python $(CLIENT_TESTS)/requirements.txt
	@touch $@

clients: setup $(CLIENTS)/.synced ## what people ask OpenAI's API with, each at its main job against a real pod
	$(RUN) -m pytest --durations=20 $(CLIENT_TESTS)

# Another cluster only where the command line names it: KUBECONFIG of the environment may be anybody's.
E2E_ARGS ?=

e2e: setup ## images and chart under a real kubelet, asked all the time; of its own (root, containerd), or KUBECONFIG=FILE
	$(RUN) -m tests.e2e $(if $(filter command,$(origin KUBECONFIG)),--kubeconfig $(KUBECONFIG)) $(E2E_ARGS)

bench: setup ## how one operator carries 500 pools: seconds, memory, requests
	$(RUN) bench/operator_scale.py --pools 500

bench-adapters: setup ## how long an adapter takes to mount, and how fast different ones answer in one batch, beside peft
	$(RUN) bench/adapter_mount.py
	$(RUN) bench/mixed_batch.py

bench-engine: setup ## how fast the engine answers over HTTP on this processor, beside Transformers, PEFT and vLLM
	$(RUN) bench/engine.py --uv $(UV) --out docs/benchmarks.json

bench-gpu: setup ## whether and how fast the engine runs on this machine's GPU; needs one
	$(RUN) bench/gpu.py --device cuda --out docs/benchmarks.json

lint: setup ## format, lint, types, import walls
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

generate: setup ## write the CRD from the API models, the reference's tables, the picture of the rooms
	$(RUN) -m graft_operator.resource.crd
	$(RUN) docs/tables.py docs/reference.md
	$(RUN) docs/rooms.py docs/architecture.md

verify: generate lint test ## all that CI checks; then the tree must be clean
	git diff --exit-code

clean: ## forget .venv and .cache
	rm -rf .venv .cache
