"""Conditions stand side by side; as much of the text is measured as was asked for."""

import json

import numpy as np
import pytest

from experiments.configs import tiny
from experiments.jobs import measurement
from experiments.jobs.evaluation import Evaluation

_ALL = (
    "off",
    "on",
    "random",
    "shuffled",
    "match",
    "continuation",
    "oracle",
    "stale",
    "knn",
)


class _Sequences:
    """Five sequences, which are given as their numbers."""

    def __len__(self):
        return 5

    def in_order(self, batch_size, every):
        some = range(every // 2, 5, every)
        return (
            some[first : first + batch_size]
            for first in range(0, len(some), batch_size)
        )


@pytest.mark.parametrize(("most", "measured"), [(0, 5), (3, 3), (9, 5)])
def test_no_more_sequences_are_measured_than_were_asked_for(most, measured):
    cfg = tiny.get_config()
    cfg.evaluation.max_sequences, cfg.evaluation.batch_size = most, 1
    assert measurement.num_sequences(cfg, _Sequences()) == measured
    assert len(list(measurement.batches(cfg, _Sequences()))) == measured


def _evaluated(run, **evaluation) -> dict:
    job, workdir = run
    made = job()
    settings = {"prompt_sequences": 0, **evaluation}
    for name, value in settings.items():
        setattr(made.run.cfg.evaluation, name, value)
    made.run.cfg.evaluation.validate()
    made.evaluate()
    return json.loads(
        (workdir / "evaluation" / f"{Evaluation(made.run).name}.json").read_text()
    )


@pytest.fixture(scope="module")
def reported(run):
    """What the report shows, and the settings, as training and evaluation left them."""
    _, workdir = run
    names = ("evaluation/results.json", "settings.json", "report.md")
    return {name: (workdir / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def side_by_side(run, reported):
    """Everything at once, on the run's own split."""
    return _evaluated(
        run,
        name="all",
        conditions=_ALL,
        neighbours=(0, 1, 2, 5),
        database_shares=(0.25, 1.0),
        decontaminate=True,
    )


def test_an_evaluation_with_a_name_leaves_the_report_alone(run, reported, side_by_side):
    _, workdir = run
    assert side_by_side["settings"]["name"] == "all"
    for name, before in reported.items():
        assert (workdir / name).read_bytes() == before


def test_text_that_is_searched_anew_has_the_datasets_losses(reported, side_by_side):
    before = json.loads(reported["evaluation/results.json"])["conditions"]
    found = side_by_side["conditions"]
    assert set(found) == set(_ALL)
    for name in ("off", "on", "random"):
        for what, value in before[name].items():
            assert found[name][what] == pytest.approx(value, rel=1e-6), (name, what)


def test_stale_passages_are_other_passages(side_by_side):
    stale, on = (side_by_side["conditions"][name] for name in ("stale", "on"))
    assert stale["bits_per_byte"] != on["bits_per_byte"]
    assert stale["bits_per_byte"] != side_by_side["conditions"]["off"]["bits_per_byte"]


def test_a_database_of_which_no_document_has_room_is_refused_first(run, monkeypatch):
    monkeypatch.setattr(measurement, "_losses", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"knn_chunks=1: each document .* raise it"):
        _evaluated(run, name="few", conditions=("off", "knn"), knn_chunks=1)


def test_text_too_large_for_knn_lm_is_refused_first(run, monkeypatch):
    monkeypatch.setattr(measurement, "_losses", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(measurement.knn_lm, "POSITION_BYTES", 2**50)
    with pytest.raises(ValueError, match="kNN-LM would hold .* evaluation.max_seq"):
        _evaluated(run, name="much", conditions=("off", "knn"))


def test_curves_end_in_the_conditions(side_by_side):
    found, on = side_by_side, side_by_side["conditions"]["on"]
    by_count = {each["neighbours"]: each for each in found["neighbours"]}
    assert list(by_count) == [0, 1, 2, 5]
    assert by_count[0]["minus_off"] == 0.0
    assert by_count[2]["bits_per_byte"] == pytest.approx(on["bits_per_byte"], rel=1e-6)
    values = [each["bits_per_byte"] for each in by_count.values()]
    assert len(set(values)) == 4
    part, whole = found["database_shares"]
    assert part["chunks"] < whole["chunks"] == found["database"]["chunks"]
    assert whole["bits_per_byte"] == pytest.approx(on["bits_per_byte"], rel=1e-9)
    assert part["bits_per_byte"] != whole["bits_per_byte"]


def test_documents_add_up_to_the_whole(side_by_side):
    by_document, conditions = side_by_side["by_document"], side_by_side["conditions"]
    assert len(set(by_document["documents"])) == side_by_side["documents"]
    size = sum(by_document["bytes"])
    assert size == side_by_side["bytes"]
    for name, bits in by_document["bits"].items():
        wanted = conditions[name]["bits_per_byte"]
        assert sum(bits) / size == pytest.approx(wanted, rel=1e-9)


def test_perplexity_of_a_word_is_that_of_a_plain_computation(run, side_by_side):
    job, _ = run
    snapshot = job().database.snapshot
    table = snapshot.chunks("test")
    rows = table.column("documents")
    texts = [
        snapshot.tokenizer.decode(
            table.take("tokens", np.flatnonzero(rows == row)).reshape(-1)
        )
        for row in np.unique(rows)
    ]
    words = sum(len(text.split()) for text in texts)
    found = side_by_side["per_word"]
    assert found["words_scored"] == words
    bits = sum(side_by_side["by_document"]["bits"]["on"])
    measured = found["conditions"]["on"]
    assert measured["perplexity_by_words_scored"] == pytest.approx(2 ** (bits / words))
    of_bytes = bits / sum(len(text.encode()) for text in texts)
    assert measured["bits_per_byte_of_pages"] == pytest.approx(of_bytes)


def test_a_folder_is_measured_against_the_database(run, tmp_path):
    """Whose passages are those of the split, where the text is that of the split."""
    job, _ = run
    snapshot = job().database.snapshot
    table, names = snapshot.chunks("test"), snapshot.documents("test").column("id")
    rows = table.column("documents")
    lines = [
        {
            "id": names[int(row)].as_py(),
            "text": snapshot.tokenizer.decode(
                table.take("tokens", np.flatnonzero(rows == row)).reshape(-1)
            ),
        }
        for row in np.unique(rows)
    ]
    folder = tmp_path / "other text"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = _evaluated(run, held_out=str(folder), conditions=("on",))
    own = _evaluated(run, name="own", conditions=("on",))
    assert found["conditions"] == own["conditions"]
    assert found["by_document"] == own["by_document"]
    (folder / "b.txt").write_text("One more page.")
    changed = _evaluated(run, held_out=str(folder), conditions=("on",))
    assert changed["documents"] == found["documents"] + 1


def test_a_report_without_retrieval_on_is_refused(run, reported):
    with pytest.raises(ValueError, match="the report shows retrieval on"):
        _evaluated(run, conditions=("off", "random"))


def test_one_document_has_no_interval_in_words():
    values = {"bits_per_byte": 1.5, "minus_off": -0.25}
    none, known = [np.nan, np.nan], [-0.5, 0.0]
    results = {
        "documents": 1,
        "bytes": 1619.0,
        "conditions": {
            "on": values | {"interval": none, "minus_off_interval": none},
            "random": values | {"interval": known, "minus_off_interval": known},
        },
    }
    _, on, random = measurement.in_words(results).splitlines()
    assert on == "          on  1.5000 [no interval]  -0.2500 [no interval]"
    assert random.endswith("[-0.5000, 0.0000]  -0.2500 [-0.5000, +0.0000]")
