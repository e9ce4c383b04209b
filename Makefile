# retro-jax: `make train` and `make test` need nothing but Python 3.11, make and git.

PYTHON      ?= python3.11
ACCELERATOR ?= cpu
CORPUS      ?=
CONFIG      ?= experiments/configs/tiny.py
# A run's folder: one for each corpus, so that they do not put each other aside.
WORKDIR     ?= work/$(or $(subst :,-,$(notdir $(patsubst %/,%,$(CORPUS)))),tiny)
DATABASE    ?= $(WORKDIR)/database
PROMPT      ?=
QUERY       ?=
ARGS        ?=
# What `make serve-db` starts: shard servers (0: one for four cores).
SHARDS      ?= 0
PORT        ?= 50050
# What `make aot` compiles, and for which TPU slices.
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

help:  ## Lists the commands.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

train: database  ## From text to a trained RETRO and its report. CORPUS= puts your text in.
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=train --on_other_run=restart
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=evaluate

database: install  ## Builds the database that `train` trains on.
	@$(PY) -m experiments.build_database $(FLAGS)

evaluate: install  ## Measures a trained model again and rewrites its report.
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=evaluate

search: install  ## The passages of the database that are nearest to QUERY='...'.
	@$(PY) -m experiments.database search --database='$(DATABASE)' $(ARGS) -- "$$QUERY"

generate: install  ## Continues PROMPT='...' with a trained model and prints the sources.
	@$(PY) -m experiments.main $(FLAGS) --workdir='$(WORKDIR)' --job=generate \
		"--config.evaluation.prompt=$$PROMPT"

export PROMPT QUERY

serve-db: install  ## Serves DATABASE at PORT from this machine, in SHARDS processes and a router.
	@exec $(PY) -m data_pipeline.service.serve_local '--database=$(DATABASE)' \
		--num_shards=$(SHARDS) --port=$(PORT) $(ARGS)

bench: install  ## Speeds of embedder, indexes, input and tiny steps; more: -m tools.benchmark --help
	@$(PY) -m tools.benchmark embed
	@$(PY) -m tools.benchmark index
	@$(PY) -m tools.benchmark input $(if $(wildcard $(DATABASE)/manifest.json),'--database=$(DATABASE)')
	@$(PY) -m tools.benchmark train

test: install  ## Runs the tests.
	@# A file's tests share what they compile and build: one process runs them all.
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q tests

lint: install  ## Checks style, formatting and types.
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy retro_jax data_pipeline experiments tools

format: install  ## Formats the code.
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

install: $(STAMP)  ## Makes the environment in .venv, if it is not there yet.

$(STAMP): requirements.lock requirements-minilm.lock setup.cfg
	@sh install.sh "$(PYTHON)" "$(ACCELERATOR)" "$(VENV)"
	@touch $@

install-torch: install  ## Adds sentence-transformers, for embedders by name. See the README.
	@$(PY) -m pip install -q -r requirements-torch.lock

install-ray: install  ## Adds Ray, for `--engine=ray`.
	@$(PY) -m pip install -q --require-hashes -r requirements-ray.lock

aot: install-aot  ## Compiles the training step for TPU slices: what fits, what limits it.
	@$(PY) -m tools.aot --config=$(AOT_CONFIG) --topology=$(TOPOLOGY) \
		--out='work/aot-$(lastword $(subst :, ,$(AOT_CONFIG)))' $(ARGS)

install-aot: $(AOT)/installed  ## Adds the TPU compiler, for `make aot`.

$(AOT)/installed: $(STAMP) requirements-aot.lock
	@rm -rf $(AOT)
	@$(PY) -m pip install -q --require-hashes --target $(AOT) -r requirements-aot.lock
	@touch $@

lock:  ## Resolves requirements.lock anew (needs uv).
	uv pip compile setup.cfg --extra data --extra serve --extra hybrid --extra faiss \
		--extra report --extra test \
		--python-version 3.11 --universal --generate-hashes --no-header -q \
		-o requirements.lock

# grpcio-tools has an environment of its own: nothing else needs it.
PROTO_VENV := work/proto-venv

proto:  ## Generates the messages' code from retrieval.proto.
	@[ -x $(PROTO_VENV)/bin/python ] || $(PYTHON) -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/python -m pip install -q grpcio-tools==1.76.0
	@$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
		data_pipeline/service/wire/retrieval.proto

golden: install  ## Accepts the code of the stages: their numbers stand for it now.
	@$(PY) -m data_pipeline.build.stage_code

clean:  ## Removes the environment and all runs.
	rm -rf $(VENV) work
