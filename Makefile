# The commands of retro-jax. `make train` and `make test` need only Python 3.11, make and git.

CORPUS   ?=  ## your text: a folder, a file, tfds:NAME, hf:NAME, factbook or python [factbook]
QUERY    ?=  ## what `make search` searches for
PROMPT   ?=  ## what `make generate` continues
CONFIG   ?=  ## retrofit:DECODER, tiny, retro:172m or a file [the run's own, else retrofit]
WORKDIR  ?=  ## the folder of the run [one of the corpus's own, else work/CONFIG]
DATABASE ?=  ## the folder of the database, or a service's address [WORKDIR/database]
OUT      ?=  ## the folder that `make export` makes and `make push` uploads
HUB      ?=  ## where `make push` uploads it: OWNER/NAME of the Hugging Face hub
DIR      ?=  ## the folder of a launch, for `make dashboard`
ARGS     ?=  ## more flags of the command, such as --config.train.steps=300
SHARDS   ?=  ## servers that `make serve-db` starts [one for four cores]
SCALE    ?=  ## of `make ablations`: smoke, small, gpu or paper [smoke]
PORT     ?=  ## where `make serve` and `make serve-db` serve [8000, 50050]
# What `make install` installs for, cpu, cuda12 or tpu, and with which Python.
ACCELERATOR ?= cpu
PYTHON      ?= python3.11
# `make aot` compiles this configuration for these TPU slices.
AOT_CONFIG  ?= experiments/configs/retro.py:7.5b
TOPOLOGY    ?= v4:4x4x4,v5e:16x16,v5p:4x4x4,v6e:16x16

# What a user types reaches the commands as it is: make would expand `$` in it, and a shell
# would take quotes apart. So its raw text goes into the environment, and recipes say "$$NAME".
TYPED := CORPUS QUERY PROMPT CONFIG WORKDIR DATABASE OUT HUB DIR ARGS SHARDS SCALE PORT ACCELERATOR PYTHON \
	AOT_CONFIG TOPOLOGY
$(foreach name,$(TYPED),$(eval override $(name) := $$(value $(name))))
export $(TYPED)

VENV   := .venv
PY     := $(VENV)/bin/python
# The command takes more flags from RETRO_ARGS, and takes their quotes apart itself.
RETRO  := env "RETRO_ARGS=$$RETRO_ARGS $$ARGS" $(PY) -m experiments.retro
PLACES := $${CORPUS:+"--corpus=$$CORPUS"} $${WORKDIR:+"--workdir=$$WORKDIR"} \
	$${DATABASE:+"--database=$$DATABASE"}
FLAGS  := $(PLACES) $${CONFIG:+"--config=$$CONFIG"}
QUICKLY := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
STAMP  := $(VENV)/installed-$(ACCELERATOR)
AOT    := $(VENV)/aot

.DELETE_ON_ERROR:
.PHONY: train database launch dashboard ablations report evaluate generate export push search test lint format lock install \
	install-torch install-ray install-docs docs install-aot aot bench serve serve-db settings proto \
	golden clean help

help:  ## Lists these commands, and the variables that they take.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo; echo 'Variables, as NAME=VALUE:'
	@grep -hE '^[A-Z]+ .*##' $(MAKEFILE_LIST) | sed -E 's/ .*## /\t/' | expand -t 16
	@echo; echo "For example: make train CORPUS=~/notes ARGS='--config.train.steps=300'"
	@echo "             make search CORPUS=~/notes QUERY='how are dates parsed'"
	@echo 'The command behind them works in any folder: .venv/bin/retro --help'

train: install  ## Builds a database, trains a RETRO and writes its report. CORPUS=PATH takes your text.
	@$(RETRO) train $(FLAGS)

database: install  ## Builds the database that `make train` trains on.
	@$(RETRO) database $(FLAGS)

launch: install  ## Runs a sweep as work units: CONFIG=tiny ARGS='--sweep --out=work/sweep'.
	@$(RETRO) launch $${CORPUS:+"--corpus=$$CORPUS"} $${DATABASE:+"--database=$$DATABASE"} \
		$${CONFIG:+"--config=$$CONFIG"}

ablations: install  ## Runs the rows of the paper's table 13 as a sweep: SCALE=smoke, small, gpu, paper.
	@# What stands first gives way to ARGS. Pods are somewhere else: paper prints commands.
	@# A smoke run compiles for longer than it computes: quickly made code is enough.
	@case "$${SCALE:=smoke}" in paper) first=--executor=print;; gpu) first=;; *) first=--parallel=2;; esac; \
		[ "$$SCALE" != smoke ] || export XLA_FLAGS="$(QUICKLY) $$XLA_FLAGS"; \
		RETRO_ARGS="$$first $$RETRO_ARGS"; \
		$(RETRO) launch $${CORPUS:+"--corpus=$$CORPUS"} $${DATABASE:+"--database=$$DATABASE"} \
		"--config=ablations:$$SCALE" --sweep "--out=work/ablations-$$SCALE"

report: install  ## Writes work/evidence/report.html from the result files of experiments/results.
	@$(PY) -m experiments.report.evidence

dashboard: install  ## Writes one page with the curves and the table of a launch: DIR=work/sweep.
	@$(PY) -m experiments.retro launch dashboard "$$DIR"

evaluate: install  ## Measures a trained model again, or on other text.
	@$(RETRO) evaluate $(FLAGS)

search: install  ## Finds the passages of the database that are nearest to QUERY='...'.
	@$(RETRO) search $(PLACES) -- "$$QUERY"

generate: install  ## Continues PROMPT='...' with a trained model and prints its sources.
	@$(RETRO) generate $(FLAGS) -- "$$PROMPT"

export: install  ## Writes the trained model as the folder OUT, which needs nothing else.
	@$(RETRO) export $(FLAGS) "--out=$$OUT"

push: install  ## Uploads OUT to HUB; needs the environment variable HF_TOKEN.
	@[ -f "$$OUT/retro_config.json" ] || \
		{ echo "error: OUT=$$OUT holds no model: make export OUT=FOLDER first" >&2; exit 2; }
	@[ "$$HUB" ] || { echo 'error: where to? HUB=OWNER/NAME of the Hugging Face hub' >&2; exit 2; }
	@$(VENV)/bin/hf upload --repo-type=model -- "$$HUB" "$$OUT" .

serve: install  ## Serves the trained model at PORT of this machine, with its sources and a page.
	@exec $(RETRO) serve-model $(FLAGS) $${PORT:+"--port=$$PORT"}

serve-db: install  ## Serves DATABASE at PORT of this machine: SHARDS shard servers and a router.
	@exec $(RETRO) serve $(PLACES) $${SHARDS:+"--num_shards=$$SHARDS"} $${PORT:+"--port=$$PORT"}

settings: install  ## Lists every setting with its type, value and meaning.
	@$(RETRO) settings $(FLAGS)

bench: install  ## Measures the speed of embedder, indexes, input and tiny training steps.
	@$(PY) -m tools.benchmark embed
	@$(PY) -m tools.benchmark index
	@database="$${DATABASE:-work/retrofit/database}"; [ -f "$$database/manifest.json" ] || database=; \
		$(PY) -m tools.benchmark input $${database:+"--database=$$database"}
	@$(PY) -m tools.benchmark train

test: install  ## Runs the tests.
	@# The tests of a file share what they compile and build: one process runs them all. Three
	@# keep two cores busy: tests wait for the programs that they start.
	@$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -q tests

lint: install  ## Checks style, formatting and types.
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy retro_jax data_pipeline experiments tools $(wildcard deploy/*.py)

format: install  ## Formats the code.
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

install: $(STAMP)  ## Makes the environment in .venv if it is not there yet.

$(STAMP): requirements.lock requirements-weights.lock setup.cfg
	@sh install.sh "$$PYTHON" "$$ACCELERATOR" "$(VENV)"
	@touch $@

install-torch: install  ## Adds sentence-transformers, which loads other embedders by name.
	@$(PY) -m pip install -q -r requirements-torch.lock

install-ray: install  ## Adds Ray, which `--engine=ray` builds with.
	@$(PY) -m pip install -q --require-hashes -r requirements-ray.lock

docs: install-docs  ## Builds the pages in work/docs/site; runs the two that are notebooks.
	@$(PY) -m sphinx -E -W --keep-going -q -b html docs work/docs/site
	@echo "the pages are in work/docs/site/index.html"

install-docs: $(VENV)/installed-docs  ## Adds Sphinx, which `make docs` needs.

$(VENV)/installed-docs: $(STAMP) requirements-docs.lock
	@$(PY) -m pip install -q --require-hashes -r requirements-docs.lock
	@touch $@

aot: install-aot  ## Compiles the training step for TPU slices and tells what fits and what limits it.
	@set -f; $(PY) -m tools.aot "--config=$$AOT_CONFIG" "--topology=$$TOPOLOGY" \
		"--out=work/aot-$${AOT_CONFIG##*:}.json" $$ARGS

install-aot: $(AOT)/installed  ## Adds the TPU compiler, which `make aot` needs.

$(AOT)/installed: $(STAMP) requirements-aot.lock
	@rm -rf $(AOT)
	@$(PY) -m pip install -q --require-hashes --target $(AOT) -r requirements-aot.lock
	@touch $@

lock:  ## Resolves requirements.lock anew; needs uv.
	uv pip compile setup.cfg --extra data --extra serve --extra server --extra documents --extra hybrid \
		--extra faiss --extra report --extra test \
		--python-version 3.11 --universal --generate-hashes --no-header -q \
		-o requirements.lock

# grpcio-tools has an environment of its own, because nothing else needs it.
PROTO_VENV := work/proto-venv

proto:  ## Generates the code of the service's messages from retrieval.proto.
	@[ -x $(PROTO_VENV)/bin/python ] || "$$PYTHON" -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/python -m pip install -q grpcio-tools==1.76.0
	@$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
		data_pipeline/service/wire/retrieval.proto

golden: install  ## Accepts the code of the stages: their numbers stand for it now.
	@$(PY) -m data_pipeline.build.stage_code

clean:  ## Removes the environment, and asks whether all runs and databases are to go too.
	rm -rf $(VENV)
	@[ ! -d work ] || { printf 'delete work/ with all its runs and databases? [y/N] '; \
		read answer && [ "$$answer" = y ] && rm -rf work || echo 'work/ stays'; }
