"""The paper's table beside ours: signs, noise, and who is too few to say."""

import pytest

from experiments.configs import ablations
from experiments.report import table13


@pytest.mark.parametrize(
    ("paper", "ours", "intervals", "seeds", "judgement"),
    [
        (0.128, 0.05, [(0.01, 0.09), (0.02, 0.08)], 5, table13.SAME_SIGN),
        (-0.001, -0.05, [(-0.09, -0.01), None], 5, table13.SAME_SIGN),
        (0.128, -0.05, [(-0.09, -0.01), (-0.08, -0.02)], 5, table13.DIFFERS),
        (0.128, 0.05, [(-0.01, 0.11), (0.02, 0.08)], 5, table13.WITHIN_NOISE),
        (0.128, 0.05, [(0.01, 0.09), (-0.02, 0.12)], 5, table13.WITHIN_NOISE),
        (0.128, 0.0, [(0.0, 0.0), None], 5, table13.WITHIN_NOISE),
        (0.128, 0.05, [(0.01, 0.09), (0.02, 0.08)], 4, table13.TOO_FEW_SEEDS),
        (0.128, 0.05, [None, (0.02, 0.08)], 1, table13.TOO_FEW_SEEDS),
        (None, 0.05, [(0.01, 0.09), (0.02, 0.08)], 5, table13.NOT_IN_PAPER),
    ],
)
def test_a_sign_counts_if_no_interval_includes_zero(
    paper, ours, intervals, seeds, judgement
):
    assert table13.beside_paper(paper, ours, intervals, seeds) == judgement


def test_the_paper_s_rows_and_ours_have_one_order_and_one_meaning():
    assert len(table13.PAPER_BITS_PER_BYTE) == 15
    assert table13.PAPER_BITS_PER_BYTE["no_retrieval"] == 0.987
    assert table13.PAPER_BITS_PER_BYTE["cca_every_3_from_1"] == 0.823
    assert [*table13.MEANINGS] == [*ablations.ROWS]


def _variant(value, condition="on", **beside):
    of_seed = {"seeds": 5, "bits_per_byte": value}
    made = {"conditions": {"off": {**of_seed, "bits_per_byte": 2.0}}}
    made["conditions"][condition] = of_seed
    return made | ({"minus_first": beside} if beside else {})


def test_rows_are_found_by_what_they_change():
    ends = {"interval": [0.1, 0.3], "documents_interval": [0.15, 0.25]}
    variants = {
        "": _variant(1.5),
        "model.neighbour_part=match": _variant(1.7, bits_per_byte=0.2, **ends),
        "model.cca_layers=()": _variant(1.9, "off", bits_per_byte=0.4, **ends),
        "train.steps=7": _variant(1.1),  # of no row
    }
    default, match, nothing = table13.rows(variants, "small")
    assert (default.name, default.ours, default.judgement) == ("default", None, "")
    assert match.bits_per_byte == 1.7 and match.paper == pytest.approx(0.128)
    assert match.judgement == table13.SAME_SIGN
    assert (nothing.name, nothing.bits_per_byte) == ("no_retrieval", 1.9)
    assert table13.cells(match)[1:] == (
        *("same sign", "+0.128", "+0.2000", "+0.1000 to +0.3000"),
        *("+0.1500 to +0.2500", "1.7000"),
    )
    assert table13.cells(default)[1:] == ("", "0.000", "0", "", "", "1.5000")
