"""Every shell command of the pages is run at tiny scale, or else parsed as it would be."""

import contextlib
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny_corpus, tiny_retrofit
from tests.commands import ROOT
from tests.documented_commands import Command, commands, commands_of

_INSTALLS = "it installs packages; tests/test_makefile.py runs its recipe"
_TRAINS_LIKE = "a training as those that are run, with another configuration"
_MEASURES = "tests/experiments/jobs/test_measurement.py measures other text"
_LARGE = "a training at the paper's size"
_SWEEPS = "tests/experiments/test_launch.py starts sweeps"
_CLUSTERS = "tests/experiments/launching/test_clusters.py renders files of clusters"
_XMANAGER = "it wants an environment of its own"
_REMOTE = "it needs another machine"
_SERVES = "it serves at a fixed port; tests/data_pipeline/service/ serve and ask"
# All that is not run, and why. Each is parsed by what it would start, as far as that is ours.
_PARSED = {
    "make install": _INSTALLS,
    "make install ACCELERATOR=cuda12": _INSTALLS,
    "make install ACCELERATOR=tpu": _INSTALLS,
    "make install PYTHON=/path/to/python3.11": _INSTALLS,
    "python -m pip install -e .": _INSTALLS,
    "python -m pip install -e '.[data,serve]'": _INSTALLS,
    "make test": "this is it",
    "make lint": "it takes a minute, and whoever changes code runs it",
    "make format": "it changes files",
    "make docs": "tests/docs/test_conf.py builds the pages",
    "make database CORPUS=tfds:NAME": "it downloads",
    "make database CORPUS=hf:NAME": "it downloads",
    "make database CORPUS=factbook": "ten megabytes of text",
    "make database CORPUS=python": "`make train` has built it",
    "make database ARGS='--engine=ray --ray_address=HOST:PORT'": _REMOTE,
    "make aot AOT_CONFIG=experiments/configs/retro.py:7.5b TOPOLOGY=v5p:4x4x4": (
        "it needs the TPU compiler; tests/tools/aot/ run it"
    ),
    "make train ACCELERATOR=cuda12 CONFIG=retro:172m CORPUS=path/to/folder": _LARGE,
    "make train ARGS='--coordinator=HOST:PORT --num_processes=2 --process_id=0'": _REMOTE,
    "retro train --config=retrofit:path/to/decoder --corpus=path/to/notes "
    "--workdir=work/notes": _TRAINS_LIKE,
    "retro export --workdir=work/notes --out=notes-model": (
        "it needs that training; tests/experiments/jobs/test_export.py runs it"
    ),
    "retro database --config=retrofit --corpus=path/to/notes "
    "--database=work/notes-database": "it wants the decoder's tokenizer",
    "retro evaluate --workdir=work/retrofit --database=work/notes-database "
    "--config.evaluation.name=notes": _MEASURES,
    "retro evaluate --workdir=work/retrofit --database=work/notes-database "
    "--config.evaluation.held_out=path/to/text": _MEASURES,
    "make export WORKDIR=work/tiny OUT=tiny-model": (
        "it needs that training; tests/experiments/jobs/test_export.py runs it"
    ),
    "make serve WORKDIR=work/retrofit": _SERVES,
    "make train CORPUS=path/to/folder": _TRAINS_LIKE,
    "make generate CORPUS=path/to/folder PROMPT='The first'": _TRAINS_LIKE,
    "retro train --config=ablations:no_cca_positions --corpus=path/to/folder "
    "--workdir=work/no_cca_positions": _LARGE,
    "retro train --config=ablations:match_only,small --workdir=work/match_only": _TRAINS_LIKE,
    "make ablations SCALE=smoke": _SWEEPS,
    "retro launch status work/ablations-smoke "
    "--keep=experiments/results/ablations-smoke.json": _SWEEPS,
    "make report": "tests/experiments/report/test_evidence.py writes it",
    "make train CONFIG=tiny:baseline WORKDIR=work/baseline DATABASE=work/tiny/database": (
        _TRAINS_LIKE
    ),
    "make train CONFIG=tiny:retrofit WORKDIR=work/tiny-retrofit DATABASE=work/tiny/database "
    "ARGS=--config.init_from=work/baseline": _TRAINS_LIKE,
    "make train CONFIG=tiny ARGS='--config.train.steps=1000'": _TRAINS_LIKE,
    "retro train --config=tiny --config.train.steps=1000": _TRAINS_LIKE,
    "make serve-db PORT=50050": _SERVES,
    "make search QUERY='how are dates parsed' DATABASE=grpc://localhost:50050": _SERVES,
    "make generate PROMPT='The capital of Fiji is' WORKDIR=work/retrofit "
    "DATABASE=grpc://localhost:50050": _SERVES,
    "python -m data_pipeline.service.shard_server --database=DIR --shard=0 --num_shards=2 "
    "--port=50051": _SERVES,
    "python -m data_pipeline.service.router "
    "--database=DIR --shards='a:50051|b:50051,c:50051|d:50051' --port=50050": _SERVES,
    "make search QUERY='dates' DATABASE=grpcs://HOST:PORT "
    "ARGS='--tls_ca=FILE --token_file=FILE'": _SERVES,
    "retro launch --config=tiny --sweep --out=work/sweep --parallel=2": _SWEEPS,
    "make launch CONFIG=tiny ARGS='--sweep --out=work/sweep'": _SWEEPS,
    "retro launch status work/sweep": _SWEEPS,
    "retro launch dashboard work/sweep": _SWEEPS,
    "make dashboard DIR=work/sweep": _SWEEPS,
    "retro launch --config=retro:172m --sweep --out=/share/sweep --executor=slurm "
    "--accelerator=h100:8 --hosts=4": _SWEEPS,
    "retro launch --config=retro:172m,v5e:4x4 --accelerator=v5e:4x4 "
    "--hosts=4 --executor=gke --out=/share/172m "
    "--database=/share/database --image=IMAGE --claim=NAME --volume=/share": _CLUSTERS,
    "retro launch --config=retro:7.5b,v5p:4x4x4 --accelerator=v5p:4x4x4 "
    "--hosts=16 --executor=gke --out=/share/7b "
    "--database=/share/database --image=IMAGE --claim=NAME --volume=/share": _CLUSTERS,
    "retro launch --config=retro:425m,v5e:4x8 --accelerator=v5e:4x8 "
    "--hosts=8 --executor=skypilot --out=/share/425m --database=/share/database": _CLUSTERS,
    "retro launch --config=retro:1.5b,h100:32 --accelerator=h100:8 "
    "--hosts=4 --executor=slurm --out=/share/1b --database=/share/database": _CLUSTERS,
    "retro launch --config=retro:172m,h100:8 --accelerator=h100:8 --executor=skypilot "
    "--out=/share/172m-h100 --database=/share/database": _CLUSTERS,
    "xm/bin/xmanager launch experiments/launch_xm.py -- --config=retro:172m,h100:8 "
    "--out=work/172m --database=work/database": _XMANAGER,
    "python3.11 -m venv xm": _XMANAGER,
    "xm/bin/pip install -U pip": _XMANAGER,
    "xm/bin/pip install xmanager==0.8.5.post1": _XMANAGER,
    "xm/bin/xmanager launch experiments/launch_xm.py -- --config=tiny --sweep "
    "--out=work/sweep --database=work/tiny/database": _XMANAGER,
    "docker build -f deploy/Dockerfile -t retro-jax:0.1.0 .": "it needs Docker",
}
# Other people's programs: there is nothing of ours that could parse them.
_FOREIGN = re.compile(
    r"docker |python -m pip |python3.11 -m venv |xm/bin/|git |make (install|test|lint|format|docs)"
)

# What makes every command tiny, in RETRO_ARGS: what a page says itself counts more.
_TINY_DATA = {
    "data.embedded_size_bytes": 30_000,
    "data.validation_share": 0.1,
    "data.test_share": 0.15,
    "data.chunk_len": 8,
    "data.index": "exact",
    "data.sequence_chunks": 4,
    "data.neighbour_len": 16,
}
_TINY_RUN = {
    "model.chunk_len": 8,
    "model.neighbour_len": 16,
    "train.steps": 2,
    "train.log_every": 1,
    "evaluation.batch_size": 2,
    "evaluation.max_sequences": 4,
    "evaluation.num_samples": 1,
    "evaluation.sample_tokens": 3,
}
_TINY_MODEL = {
    "data.vocab_size": 400,
    "model.width": 32,
    "model.head_size": 16,
    "model.ffw_width": 32,
    "model.encoder_width": 32,
    "model.encoder_head_size": 16,
    "model.encoder_ffw_width": 32,
}


def _tiny(words: list[str]) -> str:
    """RETRO_ARGS for a command of `retro`, in words."""
    if words[0] not in ("train", "database", "evaluate", "generate", "settings"):
        return ""
    settings = _TINY_DATA | _TINY_RUN | _TINY_MODEL
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    if words[0] in ("train", "database"):
        flags.append("--workers=1")  # the others would import all that is there already
    if words[0] == "database":
        flags.append("--stage=neighbours")  # what a search needs
    return " ".join(flags)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder like a clone after `make install`, with the files that pages speak of."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "setup.cfg", "experiments", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    for path in ROOT.glob("requirements*.lock"):
        (folder / path.name).touch()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/aot").mkdir()
    for name in (
        "installed-cpu",
        "installed-cuda12",
        "installed-docs",
        "aot/installed",
    ):
        (folder / ".venv" / name).touch()
    python = folder / ".venv/bin/python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "told = [sys.argv[1:], os.environ.get('RETRO_ARGS', '')]\n"
        "open('called', 'a').write(json.dumps(told) + '\\n')\n"
    )
    python.chmod(0o755)
    # What `make train` has made: of the configuration `tiny` here.
    (folder / "work").mkdir()
    (folder / "work/retrofit").symlink_to("tiny")
    texts = tiny_corpus.texts()
    tiny_corpus.write(folder / "path/to/folder", texts)
    lines = (folder / "path/to/folder/corpus-0.jsonl").read_bytes()
    (folder / "articles.jsonl.gz").write_bytes(gzip.compress(lines))
    news = {"id": "news", "text": "Dates are parsed by parse_date since today."}
    (folder / "news.jsonl").write_text(json.dumps(news))
    tiny_retrofit.decoder(folder / "path/to/decoder")
    tiny_retrofit.corpus(folder / "path/to/notes")
    return folder


@pytest.fixture(scope="module")
def do(place) -> Iterator[Callable[..., str]]:
    """Does what a command line says, in the folder; gives its output."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["JAX_COMPILATION_CACHE_DIR"] = str(place / ".compiled")
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    env["XLA_FLAGS"] = re.sub(r"\S+device_count=8", "", env["XLA_FLAGS"])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked_commands"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def do(text: str, *, parse: bool) -> str:
        program, *words = shlex.split(text)
        if program == "make":
            called = _made(place, words)
        elif program == "retro":
            called = [(["-m", "experiments.retro", *words], "")]
        else:
            assert program == "python" and words[0] == "-m", f"who runs {text!r}?"
            called = [(words, "")]
        outputs = []
        for (_, module, *flags), args in called:
            tiny = _tiny(flags) if module == "experiments.retro" and not parse else ""
            task = {"module": module, "words": flags, "args": f"{tiny} {args}"}
            task |= {"folder": str(place), "parse": parse}
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            done = json.loads(process.stdout.readline())
            assert done["status"] == 0, f"{text}\n{done['output']}"
            outputs.append(done["output"])
        return "".join(outputs)

    with process, contextlib.suppress(BrokenPipeError):
        yield do
        assert process.stdin
        process.stdin.close()


def _made(place: Path, words: list[str]) -> list[tuple[list[str], str]]:
    """What `make` with these words calls Python with: its words, and RETRO_ARGS."""
    made = subprocess.run(
        ["make", *words], cwd=place, capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stderr) == (0, ""), made.stderr
    lines = (place / "called").read_text().splitlines()
    (place / "called").unlink()
    return [tuple(json.loads(line)) for line in lines]


def _name(command: Command) -> str:
    return f"{Path(command.page).stem}: {command.text}"


_COMMANDS = commands()
_PARSED_HERE = [
    command
    for command in _COMMANDS
    if command.text in _PARSED and not _FOREIGN.match(command.text)
]


@pytest.mark.parametrize(
    "command", [c for c in _COMMANDS if c.text not in _PARSED], ids=_name
)
def test_a_command_runs(do, command):
    do(command.text, parse=False)


@pytest.mark.parametrize("command", _PARSED_HERE, ids=_name)
def test_a_command_that_is_too_dear_to_run_is_parsed(do, command):
    assert do(command.text, parse=True) == ""


def test_all_that_is_not_run_stands_in_a_page():
    assert not _PARSED.keys() - {command.text for command in _COMMANDS}


def test_wrong_commands_are_noticed(do):
    for wrong in (
        "retro train --config.train.stepz=3",
        "make train CONFIG=nosuch",
        "python -m data_pipeline.service.router --shard=a:1",
    ):
        with pytest.raises(AssertionError, match="error: "):
            do(wrong, parse=True)
    with pytest.raises(AssertionError, match="chunk ids go from"):
        do("retro show 99999999 --database=work/tiny/database", parse=False)


def test_commands_are_what_stands_in_fences():
    text = "a `make x`\n```sh\nmake a \\\n    B=1  # note\n\nretro b\n```\n    make c\n"
    assert list(commands_of(text)) == ["make a B=1", "retro b"]
