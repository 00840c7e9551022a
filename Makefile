# setup · demo · protos · check · audit · test · browser · interop · faults · bench · gpu · render · image · observe · help; CI runs these targets and nothing else.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PROTOS := $(shell find protos -name '*.proto')

.PHONY: help setup demo protos check audit test browser interop faults bench gpu render image observe
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(STAMP) protos ## virtual environment with everything, and the stubs

# Not compiled while they are installed: that takes as long again, and most of it is never imported.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt hatchling editables grpcio-tools
	$(BIN)/pip install -q --no-compile -c constraints.txt --no-build-isolation -e '.[server,dev]'
	@touch $@

protos: generated/stamp ## Python stubs from the protos, under generated/

generated/stamp: $(STAMP) $(PROTOS) protos/build_stubs.py
	$(BIN)/python protos/build_stubs.py
	@touch $@

demo: setup ## the miniature in a mesh answers two spoken questions: reply.wav, reply-1.wav
	$(BIN)/chroma-mesh demo --out reply.wav

check: setup ## formatting, lint, types, import rules, protos, secrets, dependencies that fit and have no known hole
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf breaking protos --against protos/released.binpb
	git ls-files -z | xargs -0 -n 250 -P 2 $(BIN)/detect-secrets-hook --no-verify --exclude-lines 'secretName: "?[a-z-]+"?$$'
	$(BIN)/pip check
	$(BIN)/python -m tests.advisories

# The advisories of today, from a service on the network: so it is no part of check, which has those of a pinned edition.
audit: ## known vulnerabilities of the dependencies; needs the network
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install -q 'pip-audit>=2.9,<3'
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# Two workers on two cores: a product that took both would wait for the other worker. Files in their order: the small ones
# of tests/unit come last, so that no worker is left alone with one that takes minutes.
test: setup ## all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Chromium is the system's own: apt-get install chromium. Pictures go to build/browser/.
browser: setup ## the page in a real browser; needs Chromium
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[server,dev,browser]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser

# Clients as their makers publish them, each with its own packages, which are not the project's; Node and npm are the system's.
interop: setup ## other makers' clients against a real mesh, in about 4 minutes; needs the network
	$(PYTHON) -m venv build/interop/pipecat
	build/interop/pipecat/bin/pip install -q 'pipecat-ai[openai]>=1.14,<2'
	$(PYTHON) -m venv build/interop/livekit
	build/interop/livekit/bin/pip install -q 'livekit-agents>=1.8,<2' 'livekit-plugins-openai>=1.8,<2'
	npm install --loglevel error --no-audit --no-fund --prefix build/interop/node 'openai@^6.49' 'ws@^8'
	CHROMA_TEST_INTEROP=build/interop OMP_NUM_THREADS=1 $(BIN)/pytest -rP tests/interop

faults: setup ## hundreds of replies while replicas are killed, stopped, drained and cut off, in about 15 minutes
	FAULT_COUNT=300 OMP_NUM_THREADS=1 $(BIN)/pytest -s tests/faults

# 128 frames to 38 steps: the published 485 to 144 in little. One thread a stage, in the mesh as in one process.
bench: setup ## how fast the mesh is on this machine, in about 5 minutes: bench/
	$(BIN)/chroma-mesh bench --checkpoint random:small --device cpu --threads 1 --frames 128 \
		--sessions 1,2,4,8 --rate 0.5 --duration 30 --engine --out bench

gpu: setup ## what a GPU machine without a network needs, into build/gpu; tests/gpu/README.md says how to go on
	$(BIN)/python tests/gpu/prepare.py

# Or the kubectl of the machine, where there is no wheel of one.
render: setup ## what kustomize makes of each overlay of k8s/, into build/k8s
	@mkdir -p build/k8s
	for overlay in k8s/overlays/*; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" kubectl kustomize $$overlay --output build/k8s/$$(basename $$overlay).yaml || exit 1; \
	done

image: setup ## the steps of the Dockerfile without Docker, and a mesh from what they install, in about 3 minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/k8s/test_k8s_image.py

observe: setup ## a mesh under a real Prometheus (Debian's package), in peace and in two drills, in about 3 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -P -m tests.observe

# Stopped at any time it goes on where it was: build/mini. Recordings are espeak-ng's: apt-get install espeak-ng.
.PHONY: mini
mini: setup ## the miniature checkpoint anew, in about 2 hours on two cores; needs espeak-ng
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[server,dev,mini]'
	OMP_NUM_THREADS=1 $(BIN)/python -m mini make
