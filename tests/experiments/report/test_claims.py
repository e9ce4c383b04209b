"""Claims are named once, and say what must stand beside them."""

from experiments.report import claims


def test_each_claim_has_a_name_of_its_own_and_its_control():
    names = [claim.name for claim in claims.CLAIMS]
    assert len(set(names)) == len(names)
    # A file belongs to one claim alone.
    for name in names:
        assert not any(other.startswith(f"{name}-") for other in names)
    for claim in claims.CLAIMS:
        for sentence in (claim.sentence, claim.paper, claim.control):
            assert sentence.endswith(".")
