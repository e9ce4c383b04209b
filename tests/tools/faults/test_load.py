"""The answers of a load are counted."""

from tools.faults import load


def test_answers_are_counted():
    answers = load.Answers(
        load.Answer(outcome, took_s, 0.0)
        for outcome, took_s in [
            ("whole", 0.1),
            ("partial", 0.2),
            ("UNAVAILABLE", 0.5),
            ("UNAVAILABLE", 0.1),
        ]
    )
    assert answers.num("whole", "partial") == answers.errors() == 2
    assert answers.longest_ms() == 500
    assert answers.num("UNAVAILABLE") == 2
