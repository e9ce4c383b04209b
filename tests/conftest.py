"""Eight simulated devices for every test, hypothesis without clocks; long files first."""

import dataclasses
import functools
import gc
import os
from pathlib import Path

from tests.patience import PATIENT

os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny models spend their time in the compiler: level 0 makes it three to six times as fast,
# the older way of fusing three times more, and one piece of machine code a seventh.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    + f" {PATIENT}"
)

import hypothesis
import jax
import jaxtyping
import pytest

import tests.typecheck  # noqa: F401  the import hook looks it up here
from retro_jax.config import ModelConfig
from tests import tiny_model

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# Files that take long, the longest first: a worker that began one last would be waited for.
_LONG = [
    "retro_jax/devices/test_processes",
    "retro_jax/runs/test_preemption",
    "data_pipeline/build/test_ray_engine",
    "retro_jax/training/test_loop",
    "test_end_to_end",
    "retro_jax/model/test_stack",
    "experiments/jobs/test_job",
    "experiments/jobs/test_decoder_start",
    "retro_jax/devices/test_sharding",
    "retro_jax/model/test_retro",
    "data_pipeline/embedding/test_bert",
    "experiments/configs/test_configs",
    "data_pipeline/database/test_killed_updates",
    "data_pipeline/build/test_stage_code",
    "tools/faults/test_kills",
    "tools/faults/test_servers",
    "data_pipeline/embedding/test_embedder",
    "tools/benchmark/test_train",
    "retro_jax/runs/test_damaged_checkpoints",
    "data_pipeline/database/test_integrity",
    "data_pipeline/build/test_pipeline",
    "retro_jax/training/test_retrofit",
    "retro_jax/model/test_variants",
    "data_pipeline/service/server/test_version_follower",
    "data_pipeline/service/test_serve_local",
    "data_pipeline/index/test_kinds",
    "data_pipeline/service/test_faults",
    "data_pipeline/sequences/test_batches",
    "retro_jax/model/test_attention",
    "data_pipeline/database/test_search",
    "data_pipeline/database/test_updates",
]


def pytest_collection_modifyitems(items):
    """Puts the tests of long files first; else, and in a file, the order stays."""
    tests = Path(__file__).parent
    places = {tests / f"{name}.py": place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path, len(_LONG)))


def pytest_collection_finish():
    """Garbage is looked for seldom, and not in all that was imported: it costs 4%."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Functions that are jitted anew, as by each `train`, are compiled once."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # of commands that tests run
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session", autouse=True)
def _trace_once():
    """Equal steps of equal trainings are traced once; each is run as it would be."""
    from retro_jax.training import loop

    optimizer_of, compiled = functools.cache(loop.make_optimizer), loop.compiled
    known: dict = {}

    def make_optimizer(cfg, steps):
        # A copy: whoever owns the settings may change them.
        return optimizer_of(dataclasses.replace(cfg), steps)

    def compiled_once(function, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        step = function.__wrapped__  # the settings are its arguments
        cfg, *others = step.args
        key = (
            *(step.func, dataclasses.replace(cfg), *others, *step.keywords.items()),
            *(structure, *((x.shape, x.dtype, x.sharding) for x in leaves)),
        )
        if key not in known:
            known[key] = compiled(function, *arguments)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", make_optimizer)
        patch.setattr(loop, "compiled", compiled_once)
        yield


@pytest.fixture
def tiny_cfg() -> ModelConfig:
    """A RETRO of three layers, two of which read neighbours."""
    return tiny_model.config()


@pytest.fixture
def untyped(monkeypatch):
    """As outside of tests: wrong types reach the function, which must refuse them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def toy_embedder():
    """Databases are built and searched with the toy embedder."""
    from tests import tiny_corpus

    with tiny_corpus.toy_embedder():
        yield


@pytest.fixture(scope="session")
def tiny_corpus_folder(tmp_path_factory) -> str:
    """The tiny corpus, on disk; not to be changed."""
    from tests import tiny_corpus

    return tiny_corpus.write(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny_database(tiny_corpus_folder, tmp_path_factory):
    """A finished database of the tiny corpus; not to be changed."""
    from data_pipeline.build import pipeline
    from data_pipeline.database import Database
    from tests import tiny_corpus

    folder = tmp_path_factory.mktemp("database")
    with tiny_corpus.toy_embedder():
        pipeline.Build(tiny_corpus.config(tiny_corpus_folder), folder).run()
        database = Database.open(folder)
        assert database.embedder.width == 32  # loaded while the toy is in place
    return database


@pytest.fixture(scope="session")
def sharded_database(tiny_corpus_folder, tmp_path_factory):
    """The tiny database with an index in several shards; not to be changed."""
    from data_pipeline.build import pipeline
    from data_pipeline.database import Database
    from tests import tiny_corpus

    folder = tmp_path_factory.mktemp("sharded")
    with tiny_corpus.toy_embedder():
        cfg = tiny_corpus.config(
            tiny_corpus_folder, shard_size_bytes=1500, index_shard_rows=100
        )
        pipeline.Build(cfg, folder).run()
        database = Database.open(folder)
        assert database.embedder.width == 32  # loaded while the toy is in place
    return database
