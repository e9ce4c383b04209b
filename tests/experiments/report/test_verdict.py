"""The headline claims no more than the intervals show."""

import math

import pytest

from experiments.report import verdict
from tests import run_files


@pytest.mark.parametrize(
    ("ends", "bits", "said"),
    [
        (
            (-0.15, -0.05),
            1.9,
            "Retrieval lowers bits per byte on held-out documents by",
        ),
        ((0.05, 0.15), 2.1, "Retrieval hurts: it raises"),
        ((-0.15, 0.05), 1.9, "No effect of retrieval can be shown"),
        ((-0.15, 0.0), 1.9, "No effect of retrieval can be shown"),
        ((math.nan, math.nan), 1.9, "Whether retrieval helps can't be told from"),
    ],
)
def test_the_headline_is_honest(ends, bits, said):
    line = verdict.headline(run_files.results(on=run_files.condition(bits, ends=ends)))
    assert line.startswith(said)
    assert "from 2.0000 to " + f"{bits:.4f}" in line
    assert "nan" not in line
    assert ("lowers" in line) == (ends[1] < 0)
    assert line.endswith(".") and ". " not in line.replace("0.", "")  # one sentence


@pytest.mark.parametrize(
    ("ends", "bits", "said"),
    [
        ((-0.03, -0.01), 1.98, "not all of the gain is owed to what is retrieved"),
        ((-0.13, -0.11), 1.88, "the gain is not owed to what is retrieved"),
        ((0.01, 0.03), 2.02, "random passages raise them by 0.0200"),
        ((-0.01, 0.03), 2.01, "random passages have no effect that can be shown"),
        ((math.nan, math.nan), 2.01, "with random passages the difference is +0.0100"),
    ],
)
def test_the_headline_says_what_random_passages_do(ends, bits, said):
    line = verdict.headline(
        run_files.results(random=run_files.condition(bits, ends=ends))
    )
    assert line.startswith("Retrieval lowers")
    assert said in line


def test_the_headline_gives_the_amount_and_its_interval():
    line = verdict.headline(run_files.results())
    assert "by 0.1000 (5.0\N{NO-BREAK SPACE}%)" in line
    assert "−0.1512 to −0.0523" in line


def test_nothing_scored_is_no_result():
    found = run_files.results()
    found["conditions"]["off"] = run_files.condition(math.nan)
    assert verdict.headline(found).startswith("No held-out text was scored")


def test_few_documents_are_warned_of():
    def said(documents):
        return " ".join(
            verdict.caveats(
                run_files.results(documents=documents), run_files.settings()
            )
        )

    assert "rough" in said(11)
    assert "rough" not in said(200)


def test_one_run_is_said_to_be_one_seed():
    assert (
        "seed (train.seed = 0)"
        in verdict.caveats(run_files.results(), run_files.settings())[-1]
    )
    assert "with one seed;" in verdict.caveats(run_files.results(), {})[-1]


def test_a_retrofit_means_its_own_by_each_condition():
    found = run_files.retrofit_results()
    rows = {row.label: row for row in verdict.table(found)}
    assert list(rows) == ["off", "on, untrained", "on", "random"]
    assert "bit for bit" in rows["off"].meaning
    found["init_from"]["freeze"] = False
    assert "bit for bit" not in verdict.table(found)[0].meaning


def test_numbers_for_readers():
    assert verdict.number(-0.00001) == "0.0000"
    assert verdict.signed(0.00001) == "0.0000"
    assert verdict.signed(-0.5) == "−0.5000"
    assert verdict.signed(0.5) == "+0.5000"
    assert verdict.number(math.nan) == "n/a"
