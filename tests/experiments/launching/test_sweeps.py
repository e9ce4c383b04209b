"""Sweeps are read and checked before anything starts, like every other setting."""

import time
from pathlib import Path

import pytest

from experiments import command_line
from experiments.configs import ablations
from experiments.launching import sweeps
from tests import tiny_retrofit

_CONFIGS = Path(command_line.__file__).parent / "configs"


def _file(folder: Path, sweep: str) -> str:
    path = folder / "swept.py"
    path.write_text(f"from experiments.configs.tiny import get_config\n\n\n{sweep}\n")
    return f"--config={path}"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_retrofit.decoder(tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize(
    "path", [p for p in sorted(_CONFIGS.glob("*.py")) if "def sweep" in p.read_text()]
)
def test_every_point_of_every_config_s_sweep_is_a_valid_experiment(path, decoder):
    of_decoder = dict.fromkeys(("retrofit", "finetuned"), f":{decoder}")
    argument = (of_decoder | {"ablations": ":small"}).get(path.stem, "")
    planned = sweeps.planned([f"--config={path}{argument}"], sweep=True)
    made = [plan.experiment for plan in planned]
    assert len({str(experiment) for experiment in made}) == len(made) > 1
    for plan in planned:
        for name, text in plan.point.items():
            if not text.startswith(sweeps.OF_UNIT):
                part, _, field = name.partition(".")
                assert str(getattr(getattr(plan.experiment, part), field)) == text


def test_the_sweeps_that_are_there():
    tiny = sweeps.points(str(_CONFIGS / "tiny.py"))
    assert len(tiny) == 6
    assert {sweeps.label(sweeps.without_seed(point)) for point in tiny} == {
        f"optimizer.learning_rate={rate}" for rate in (0.001, 0.003, 0.01)
    }
    retrofit = sweeps.points(f"{_CONFIGS / 'retrofit.py'}:smollm2")
    assert retrofit == [{"train.seed": str(seed)} for seed in range(5)]


def test_without_a_sweep_there_is_one_unit_with_what_was_typed():
    words = ["--config=tiny:baseline", "--config.train.steps=3", "--corpus=python"]
    (only,) = sweeps.planned(words, sweep=False)
    assert only.point == {} and only.experiment.train.steps == 3
    assert only.experiment.data.corpus == "python" and not only.experiment.has_cca


def test_what_is_typed_holds_for_all_points_and_paths_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = _file(tmp_path, "def sweep(add):\n    add(**{'model.cca_layers': (1, 3)})")
    words = [config, "--config.train.steps=3", "--config.init_from=here"]
    (plan,) = sweeps.planned(words, sweep=True)
    assert plan.experiment.train.steps == 3
    assert plan.experiment.model.cca_layers == (1, 3)
    assert plan.experiment.init_from == str(tmp_path / "here")


def test_a_hundred_points_are_checked_in_seconds(tmp_path, decoder):
    config = tmp_path / "many.py"
    config.write_text(
        "from experiments.configs.retrofit import get_config\n\n\n"
        "def sweep(add):\n    [add(**{'train.seed': s}) for s in range(100)]\n"
    )
    began_s = time.monotonic()
    assert len(sweeps.planned([f"--config={config}:{decoder}"], sweep=True)) == 100
    assert time.monotonic() - began_s < 10


def test_the_sweep_of_the_ablations_has_each_row_with_each_seed():
    planned = sweeps.planned(["--config=ablations:small"], sweep=True)
    rows = ablations.rows_of("small")
    assert len(rows) == len(ablations.ROWS) == 22 and len(planned) == 5 * len(rows)
    for number, plan in enumerate(planned):
        seed, row = divmod(number, len(rows))
        assert plan.experiment.train.seed == seed
        # A retrofit starts from the baseline of its own seed.
        name = [*rows][row]
        baseline = seed * len(rows) + [*rows].index("no_retrieval")
        assert plan.after == (baseline if name.startswith("retrofit") else None)
    assert not planned[7].experiment.has_cca
    pods = sweeps.planned(["--config=ablations:paper"], sweep=True)
    assert len(pods) == 20 and pods[0].experiment.model.width == 896


def test_units_share_a_database_unless_their_data_differ(tmp_path):
    planned = sweeps.planned(["--config=ablations:smoke"], sweep=True)
    shared = tmp_path / "database"
    found = sweeps.databases(planned, shared, tmp_path / "out")
    others = {
        row: database
        for row, database in zip(ablations.ROWS, found, strict=True)
        if database != shared
    }
    assert [*others] == ["chunks_of_32", "chunks_of_128"]  # not neighbours_4
    assert len({*others.values()}) == 2
    again = sweeps.databases(planned[:1] + planned[-7:], shared, tmp_path / "out")
    assert {*others.values()} <= {*again}  # whatever else is in the sweep


def test_a_sweep_may_ask_for_what_stands_behind_the_colon(tmp_path):
    sweep = (
        "def sweep(add, arg):\n    [add(**{'train.seed': s}) for s in range(len(arg))]"
    )
    path = _file(tmp_path, sweep).removeprefix("--config=")
    assert len(sweeps.points(f"{path}:abc")) == 3


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            "def sweep(add):\n    add(**{'train.sede': 1})",
            "no setting train.sede; did you",
        ),
        (
            "def sweep(add):\n    add(**{'train.seed': 'x'})",
            "point 0 .*train.seed=x.*'x'",
        ),
        ("def sweep(add):\n    add(**{'train.seed': 0.5})", "point 0 .*0.5"),
        (
            "def sweep(add):\n    add(**{'train.steps': 0})",
            "point 0 .*train.steps must",
        ),
        ("def sweep(add):\n    add(**{'train': 1})", "point 0 .*"),
        (
            "def sweep(add):\n    add(init_from='unit:model.depth=9')",
            "no point of the same seed before it is 'model.depth=9'",
        ),
        (
            """def sweep(add):
    add()
    add(**{'init_from': 'unit:', 'model.cca_layers': ()})""",
            "a baseline starts from no other unit",
        ),
        ("def sweep(add):\n    [add(**{'train.seed': 1}) for _ in '12']", "=1 twice"),
        ("def sweep(add):\n    pass", "adds no work unit"),
        ("def sweep(add):\n    add(seeds)", "sweep fails: NameError.*seeds"),
        ("def sweep(add):\n    add({'train.seed': 1})", "sweep fails: TypeError"),
        ("def sweep():\n    pass", "sweep fails: TypeError"),
        ("sweep = 3", "sweep fails: TypeError"),
        ("", "has no sweep: define"),
    ],
)
def test_a_wrong_sweep_is_named(sweep, message, tmp_path):
    with pytest.raises(ValueError, match=rf"\A(?s:.)*{message}[^\n]*\Z") as error:
        sweeps.planned([_file(tmp_path, sweep)], sweep=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--config=tiny", "--config.train.seed=3"],
            "--config.train.seed is given too",
        ),
        (["--config=tiny", "--config.train.sede=3"], "there is no setting train.sede"),
        (["--config=nono"], "no configuration 'nono'"),
        (["--config=tiny", "--corpus=a", "--config.data.corpus=b"], "are one setting"),
        (["--config=tiny", "--nosuch=3"], "there is no flag --nosuch"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        sweeps.planned(words, sweep=True)
