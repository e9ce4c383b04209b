"""The bank has the form that questions of fact are made of, and says each thing once."""

import json
import sys

from experiments.jobs import facts
from tools import fact_bank


def test_each_document_answers_every_question(tmp_path, monkeypatch):
    out = tmp_path / "bank"
    monkeypatch.setattr(
        sys, "argv", ["fact_bank", f"--out={out}", "--documents=40", "--seed=3"]
    )
    fact_bank.main()
    lines = (out / "facts.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["title"] for record in records}) == len(records) == 40
    asked = [
        question
        for record in records
        for question in facts._questions(record, record["text"])
    ]
    assert len(asked) == 40 * len(facts._FORMS)
    for question in asked:
        text = next(r["text"] for r in records if r["id"] == question.document_id)
        asks = question.prompt.removeprefix(f"{text.splitlines()[0]}\n\n")
        assert f"{asks} {question.answer}" in text
    assert len({question.answer for question in asked}) > 100


def test_the_same_seed_is_the_same_bank():
    def texts(seed):
        return [record["text"] for record in fact_bank.documents(5, seed)]

    assert texts(1) == texts(1) != texts(2)
