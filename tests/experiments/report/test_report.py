import dataclasses
import html
import json
import math
import re
import types
import xml.etree.ElementTree
from html.parser import HTMLParser

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from data_pipeline.database.database import Found
from experiments.configs import tiny
from experiments.report import facts, markdown, plots, report, verdict

NAN = math.nan

MANIFEST = {
    "chunk_len": 64,
    "chunks": {"train": 1000, "validation": 20, "test": 40},
    "corpus": "notes/|<b>.jsonl",
    "documents": {
        "exact_duplicates": 3,
        "near_duplicates": 17,
        "skipped": {"undecodable": {"count": 2, "names": ["a`b.txt", "<i>.bin"]}},
        "train": {"documents": 120, "size_bytes": 2_500_000},
        "validation": {"documents": 4, "size_bytes": 30_000},
        "test": {"documents": 6, "size_bytes": 60_000},
    },
    "embedder": "minilm",
    "embedding_width": 384,
    "fingerprint": "0123456789abcdef",
    "index": {
        "kind": "ExactIndex",
        "queries": 60,
        "recall@2": 0.9693,
        "recall@10": 0.9581,
        "queries_per_s": 12_345.6,
    },
    "tokenizer_fingerprint": "fedcba9876543210",
    "vocab_size": 4096,
}


def condition(bits_per_byte, off=2.0, ends=(0.0, 0.0), little=2.2):
    return {
        "bits_per_byte": bits_per_byte,
        "interval": (bits_per_byte - 0.1, bits_per_byte + 0.1),
        "minus_off": bits_per_byte - off,
        "minus_off_interval": ends,
        "little_overlap_bits_per_byte": little,
    }


def source(document_id="train/one.py", chunk_id=7, text="one two three four"):
    found = Found(
        text=text,
        continuation=" and five",
        document_id=document_id,
        title="A title",
        uri="https://example.org/one",
        licence="MIT",
        offset=12_345,
        distance=0.4321,
        chunk_id=chunk_id,
    )
    return dataclasses.asdict(found)


def sample(text="zero one two three nine", sources=None):
    return {
        "prompt": "The opening",
        "text": text,
        "truth": "What is true",
        "document": {"id": "test/held_out.py", "title": "", "uri": "file:x"},
        "sources": [source()] if sources is None else sources,
    }


def results(on=None, random=None, documents=50, samples=None):
    """Retrieval helps, unless other conditions are given."""
    return {
        "fingerprint": "x",
        "step": 400,
        "split": "test",
        "documents": documents,
        "bytes": 60_000.0,
        "tokens": 20_000.0,
        "little_overlap_share": 0.6,
        "conditions": {
            "off": condition(2.0, little=2.3),
            "on": on or condition(1.9, ends=(-0.1512, -0.0523), little=2.2511),
            "random": random or condition(2.01, ends=(-0.005, 0.02), little=2.31),
        },
        "samples": [sample()] if samples is None else samples,
    }


def metrics(steps=60):
    return [
        {
            "step": 10 * (row + 1),
            "loss_nats_per_token": 5.0,
            "bits_per_byte": 4.0 - row / steps,
            "gradient_norm": 1.0,
            "learning_rate": 1e-3,
            "tokens_per_s": 2000.0,
            "waiting_for_data_share": 0.01,
        }
        for row in range(steps)
    ]


def settings(arg=""):
    command = (
        "/a/b/experiments/main.py --config x.py --workdir=my runs/a --job=evaluate"
    )
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(tiny.get_config(arg)))),
        "commit": "v0.1-3-gabc1234",
        "command": command,
    }


def written(folder, found, rows=None, of_run=None, manifest=MANIFEST):
    """Both reports of a run that left these files."""
    workdir = folder / "run"
    for name in ("evaluation", "metrics"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    (workdir / "evaluation" / "results.json").write_text(json.dumps(found))
    (workdir / "settings.json").write_text(json.dumps(of_run or settings()))
    lines = [json.dumps(row) + "\n" for row in (metrics() if rows is None else rows)]
    (workdir / "metrics" / "metrics.jsonl").write_text("".join(lines))
    report.write(workdir, types.SimpleNamespace(manifest=manifest))
    return (workdir / "report.html").read_text(), (workdir / "report.md").read_text()


class Structure(HTMLParser):
    """What a browser makes of a page: tags, attributes, ids and table cells."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.ids = [], [], []
        self.rows, self._cell = [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self._cell)
            self._cell = None


def test_both_reports_hold_the_same_right_numbers(tmp_path):
    page, text = written(tmp_path, results())
    # Worked out by hand from `results`.
    wanted = [
        ["off", "2.0000", "1.9000 to 2.1000", "0", "by definition", "2.3000", "0"],
        ["on", "1.9000", "1.8000 to 2.0000", "−0.1000", "−0.1512 to −0.0523"]
        + ["2.2511", "−0.0489"],
        ["random", "2.0100", "1.9100 to 2.1100", "+0.0100", "−0.0050 to +0.0200"]
        + ["2.3100", "+0.0100"],
    ]
    rows = Structure(page).rows
    for row in wanted:
        assert row in rows
        assert f"| {' | '.join(row)} |" in text


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
        ((NAN, NAN), 1.9, "Whether retrieval helps can't be told from"),
    ],
)
def test_the_headline_is_honest(ends, bits, said):
    line = verdict.headline(results(on=condition(bits, ends=ends)))
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
        ((NAN, NAN), 2.01, "with random passages the difference is +0.0100"),
    ],
)
def test_the_headline_says_what_random_passages_do(ends, bits, said):
    line = verdict.headline(results(random=condition(bits, ends=ends)))
    assert line.startswith("Retrieval lowers")
    assert said in line


def test_the_headline_gives_the_amount_and_its_interval():
    line = verdict.headline(results())
    assert "by 0.1000 (5.0\N{NO-BREAK SPACE}%)" in line
    assert "−0.1512 to −0.0523" in line


def test_text_of_others_is_never_markup(tmp_path):
    evil = "</pre><script>alert(1)</script>\n````\n# Fake\n"
    nasty = source(document_id=f"x|`{evil}", text=evil)
    nasty |= {"title": f"*{evil}", "licence": evil, "uri": "javascript:alert(2)"}
    held_out = sample(text=evil, sources=[nasty]) | {"prompt": evil, "truth": evil}
    held_out["document"] = {"id": evil, "title": evil, "uri": evil}
    page, text = written(tmp_path, results(samples=[held_out]))
    structure = Structure(page)
    assert "script" not in structure.tags
    assert page.count("&lt;script&gt;alert(1)") >= 6
    assert not any("javascript:" in str(value) for _, value in structure.attributes)
    # In Markdown each stands in a code block or span with a longer fence, or is escaped.
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", outside)
    assert "alert(1)" in outside  # title and licence
    assert "<script>" not in outside.replace(r"\<", "")
    assert "# Fake" not in re.sub(r"\\#", "", outside)


def test_both_name_every_condition_and_every_source(tmp_path):
    names = [f"train/doc_{number}.md" for number in range(5)]
    sources = [source(name, chunk_id=row) for row, name in enumerate(names)]
    page, text = written(
        tmp_path,
        results(samples=[sample(sources=sources[:3]), sample(sources=sources[2:])]),
    )
    for said in (page, text):
        for name in ("test/held_out.py", "https://example.org/one", "12,345", *names):
            assert name in said
        assert "0.432" in said
        assert said.count("The opening") == 2
    for row in verdict.table(results()):
        assert f"<dt>{row.condition}</dt>" in page
        assert html.escape(row.meaning, quote=False).replace("'", "&#39;") in page
        assert f"- **{row.condition}**: " in text


def test_a_passage_read_twice_is_shown_once():
    twice = [source(chunk_id=7), source("other", chunk_id=8), source(chunk_id=7)]
    shown = report._sample(sample(sources=twice)).sources
    assert [found["chunk_id"] for found in shown] == [7, 8]


def test_a_baseline_has_a_report(tmp_path):
    found = results(samples=[sample(sources=[])])
    found["conditions"] = {"off": found["conditions"]["off"]}
    page, text = written(tmp_path, found, of_run=settings("baseline"))
    for said in (page, text):
        assert "trained without retrieval: 2.0000 bits per byte" in said
        assert "Passages drawn at random" not in said
        assert "none: the baseline" in said
        assert "CCA) skipped" not in said
    assert not (tmp_path / "run" / "report_files" / "difference.png").exists()
    assert (tmp_path / "run" / "report_files" / "loss.png").exists()


def test_what_is_not_known_is_said_to_be(tmp_path):
    found = results(
        on=condition(1.9, ends=(NAN, NAN), little=NAN),
        random=condition(2.1, ends=(NAN, NAN), little=NAN),
        documents=1,
        samples=[],
    )
    for values in found["conditions"].values():
        values["interval"] = (NAN, NAN)
    page, text = written(tmp_path, found, rows=[], of_run={"x": 1})
    on = ["on", "1.9000", "n/a", "−0.1000", "n/a", "n/a", "n/a"]
    assert on in Structure(page).rows
    assert f"| {' | '.join(on)} |" in text
    for said in (page, text):
        assert "nan" not in said.lower()
        assert "none was asked for" in said
        assert "can&#39;t be told from 1 document" in said.replace("'", "&#39;")
        assert "not recorded" in said
    assert "No metrics of the training were found" in page
    assert "- metrics: none were found" in text


def test_nothing_scored_is_no_result():
    found = results()
    found["conditions"]["off"] = condition(NAN)
    assert verdict.headline(found).startswith("No held-out text was scored")


def test_few_documents_are_warned_of():
    assert any("rough" in note for note in verdict.notes(results(documents=11)))
    assert not any("rough" in note for note in verdict.notes(results(documents=200)))


def test_the_page_is_one_valid_file(tmp_path):
    page, text = written(tmp_path, results())
    structure = Structure(page)
    assert len(structure.ids) == len(set(structure.ids))
    loaded = [
        v for name, v in structure.attributes if name in ("src", "srcset", "data")
    ]
    assert not loaded and "link" not in structure.tags and "@import" not in page
    inner = {
        v[1:] for n, v in structure.attributes if n == "href" and v.startswith("#")
    }
    assert inner <= set(structure.ids)
    assert dict(structure.attributes)["lang"] == "en"
    assert structure.tags.count("svg") == 5
    assert len([name for name, _ in structure.attributes if name == "aria-label"]) >= 5
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        xml.etree.ElementTree.fromstring(picture)
    pictures = re.findall(r"\]\((report_files/[\w-]+\.png)\)", text)
    assert len(pictures) == 5
    for picture in pictures:
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_writing_again_gives_the_same_bytes_and_leaves_nothing_behind(tmp_path):
    first = written(tmp_path, results())
    files = tmp_path / "run" / "report_files"
    pictures = {path.name: path.read_bytes() for path in files.iterdir()}
    (files / "of-before.png").write_bytes(b"old")
    assert written(tmp_path, results()) == first
    assert {path.name: path.read_bytes() for path in files.iterdir()} == pictures
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_the_facts_are_those_of_the_run(tmp_path):
    page, text = written(tmp_path, results())
    for said in (page, text.replace("\\", "")):
        assert "120 documents, 1,000 chunks, 2.50 MB" in said
        assert "recall@2 0.970, recall@10 0.959 over 60 chunks" in said.replace(
            "0.969,", "0.970,"
        ).replace("0.958 ", "0.959 ")
        assert "60 chunks as queries, 12,346 queries/s when it was built" in said
        assert "ExactIndex" in said and "fedcba9876543210" in said
        assert "17" in said and "left out: undecodable" in said
        assert "2,000 tokens/s" in said
        assert "git checkout abc1234" in said
    assert "a`b.txt" in page and "``a`b.txt``" in text


def test_parameters_are_counted_from_the_settings():
    from retro_jax.model import parameters

    cfg = tiny.get_config()
    counted = parameters.num_parameters(
        parameters.named(parameters.skeleton(cfg.model))
    )
    said = {fact.name: fact.value for fact in facts.model(settings())}
    assert said["parameters"].startswith(f"{counted:,}, ")


def test_a_retrofit_says_how_it_began():
    for arg in ("", "baseline", "retrofit"):
        names = {fact.name for fact in facts.model(settings(arg))}
        assert ("retrofit" in names) == (arg == "retrofit")


def test_slow_stretches_weigh_more_in_the_share_of_waiting():
    rows = [
        {"tokens_per_s": 100.0, "waiting_for_data_share": 0.8},  # 0.01 s a token
        {"tokens_per_s": 300.0, "waiting_for_data_share": 0.0},  # a third of that
    ]
    assert facts.waiting_share(rows) == pytest.approx(0.6)


def test_how_to_repeat_it():
    assert facts.repeat(settings()) == [
        "git checkout abc1234",
        "python -m experiments.build_database --config=x.py '--database=my runs/a/database'",
        "python -m experiments.main --config=x.py '--workdir=my runs/a' --job=train",
        "python -m experiments.main --config=x.py '--workdir=my runs/a' --job=evaluate",
    ]
    dirty = settings() | {"commit": "abc1234-dirty"}
    assert "not committed" in facts.repeat(dirty)[0]


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--job=evaluate"):
        report.write(tmp_path, types.SimpleNamespace(manifest=MANIFEST))


def test_words_that_a_passage_holds_are_marked():
    parts = report.mark_shared("x = one, two\nthree; four no", ["one two three four"])
    assert [part.text for part in parts if part.shared] == ["one, two\nthree; four"]
    assert not any(
        p.shared for p in report.mark_shared("one two no", ["one two three"])
    )
    # Not across passages.
    assert not any(p.shared for p in report.mark_shared("a b c", ["a b", "b c"]))


@hypothesis.given(
    strategies.text("ab \n`<", max_size=40),
    strategies.lists(strategies.text("ab ", max_size=30), max_size=3),
)
def test_marking_loses_no_text(text, passages):
    parts = report.mark_shared(text, passages)
    assert "".join(part.text for part in parts) == text
    assert all(part.text for part in parts)


@hypothesis.given(strategies.text("`a\n ", max_size=30))
def test_no_text_ends_its_own_fence(text):
    lines = markdown.block(text).splitlines()
    assert lines[0] == f"{lines[-1]}text"
    assert not any(line.strip().startswith(lines[-1]) for line in lines[1:-1])
    span = markdown.code(text)
    fence = re.match("`+", span).group()
    assert span.endswith(fence) and fence not in span[len(fence) : -len(fence)]


@hypothesis.given(strategies.text(max_size=30))
def test_printable_text_can_be_written_and_does_no_harm_to_a_terminal(text):
    [cleaned] = report.printable([text + "\x1b[1m\ud800\r\n"])
    cleaned.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", cleaned)
    assert cleaned.endswith("[1m?\n")


def test_numbers_for_readers():
    assert verdict.number(-0.00001) == "0.0000"
    assert verdict.signed(0.00001) == "0.0000"
    assert verdict.signed(-0.5) == "−0.5000"
    assert verdict.signed(0.5) == "+0.5000"
    assert verdict.number(NAN) == "n/a"
    assert facts.megabytes(87_508) == "87.5 kB"
    assert facts.megabytes(7_804_604) == "7.80 MB"


def test_the_running_mean_keeps_a_line_straight_at_its_ends():
    np.testing.assert_allclose(plots.running_mean(np.full(9, 3.0), 5), 3.0)
    smooth = plots.running_mean(np.array([0.0, 3.0, 0.0, 3.0]), 3)
    np.testing.assert_allclose(smooth, [1.5, 1.0, 2.0, 1.5])


def test_a_figure_shows_its_numbers():
    figure = plots.difference(results()["conditions"])
    drawn = [tuple(line.get_xdata()) for line in figure.axes[0].lines]
    assert (-0.1512, -0.0523) in drawn
    assert any(len(x) == 1 and x[0] == pytest.approx(-0.1) for x in drawn)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["off", "on", "random"]
