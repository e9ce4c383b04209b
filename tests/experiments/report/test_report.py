"""Both forms of the report, from made-up runs."""

import html
import json
import math
import re
import types
import xml.etree.ElementTree
from html.parser import HTMLParser

import hypothesis
import pytest
from hypothesis import strategies

from experiments import config
from experiments.report import report, verdict
from tests import run_files


def written(folder, found, rows=None, of_run=None, manifest=run_files.MANIFEST):
    """Both reports of a run that left these files."""
    workdir = folder / "run"
    for name in ("evaluation", "metrics"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    (workdir / "evaluation" / "results.json").write_text(json.dumps(found))
    (workdir / "settings.json").write_text(json.dumps(of_run or run_files.settings()))
    lines = [
        json.dumps(row) + "\n"
        for row in (run_files.metrics() if rows is None else rows)
    ]
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
    page, text = written(tmp_path, run_files.results())
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


def test_text_of_others_is_never_markup(tmp_path):
    evil = "</pre><script>alert(1)</script>\n````\n# Fake\n"
    nasty = run_files.source(document_id=f"x|`{evil}", text=evil)
    nasty |= {"title": f"*{evil}", "licence": evil, "uri": "javascript:alert(2)"}
    held_out = run_files.sample(text=evil, sources=[nasty]) | {
        "prompt": evil,
        "truth": evil,
    }
    held_out["document"] = {"id": evil, "title": evil, "uri": evil}
    page, text = written(tmp_path, run_files.results(samples=[held_out]))
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
    sources = [run_files.source(name, chunk_id=row) for row, name in enumerate(names)]
    page, text = written(
        tmp_path,
        run_files.results(
            samples=[
                run_files.sample(sources=sources[:3]),
                run_files.sample(sources=sources[2:]),
            ]
        ),
    )
    for said in (page, text):
        for name in ("test/held_out.py", "https://example.org/one", "12,345", *names):
            assert name in said
        assert "0.432" in said
        assert said.count("The opening") == 2
    for row in verdict.table(run_files.results()):
        assert f"<dt>{row.condition}</dt>" in page
        assert html.escape(row.meaning, quote=False).replace("'", "&#39;") in page
        assert f"- **{row.condition}**: " in text


def test_a_passage_read_twice_is_shown_once():
    twice = [
        run_files.source(chunk_id=7),
        run_files.source("other", chunk_id=8),
        run_files.source(chunk_id=7),
    ]
    shown = report._sample(run_files.sample(sources=twice))["sources"]
    assert [found["chunk_id"] for found in shown] == [7, 8]


def test_a_baseline_has_a_report(tmp_path):
    found = run_files.results(samples=[run_files.sample(sources=[])])
    found["conditions"] = {"off": found["conditions"]["off"]}
    page, text = written(tmp_path, found, of_run=run_files.settings("baseline"))
    for said in (page, text):
        assert "trained without retrieval: 2.0000 bits per byte" in said
        assert "Passages drawn at random" not in said
        assert "none: the baseline" in said
        assert "CCA) skipped" not in said
    assert not (tmp_path / "run" / "report_files" / "difference.png").exists()
    assert (tmp_path / "run" / "report_files" / "loss.png").exists()


def test_what_is_not_known_is_said_to_be(tmp_path):
    found = run_files.results(
        on=run_files.condition(1.9, ends=(math.nan, math.nan), little=math.nan),
        random=run_files.condition(2.1, ends=(math.nan, math.nan), little=math.nan),
        documents=1,
        samples=[],
    )
    for values in found["conditions"].values():
        values["interval"] = (math.nan, math.nan)
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


def test_the_page_is_one_valid_file(tmp_path):
    page, text = written(tmp_path, run_files.results())
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
    first = written(tmp_path, run_files.results())
    files = tmp_path / "run" / "report_files"
    pictures = {path.name: path.read_bytes() for path in files.iterdir()}
    (files / "of-before.png").write_bytes(b"old")
    assert written(tmp_path, run_files.results()) == first
    assert {path.name: path.read_bytes() for path in files.iterdir()} == pictures
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_the_facts_are_those_of_the_run(tmp_path):
    page, text = written(tmp_path, run_files.results())
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


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--job=evaluate"):
        report.write(tmp_path, types.SimpleNamespace(manifest=run_files.MANIFEST))


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


@hypothesis.given(strategies.text(max_size=30))
def test_printable_text_can_be_written_and_does_no_harm_to_a_terminal(text):
    cleaned = report.printable(text + "\x1b[1m\ud800\r\n")
    cleaned.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", cleaned)
    assert cleaned.endswith("[1m\N{REPLACEMENT CHARACTER}\n")


def test_the_page_loads_and_runs_nothing_and_explains_its_unit(tmp_path):
    page, text = written(tmp_path, run_files.results())
    assert "Content-Security-Policy\" content=\"default-src 'none';" in page
    for form in (page, text):
        assert form.index("what it costs to store a byte") < form.index("Samples")


def _retrofit(folder, **changes):
    (folder / "run").mkdir()
    (folder / "run" / "reading.json").write_text(json.dumps(run_files.LIMITS))
    found = run_files.retrofit_results(**changes)
    return written(folder, found, of_run=run_files.retrofit_settings())


def test_a_retrofit_has_its_own_parts_in_both_forms(tmp_path):
    page, text = _retrofit(tmp_path)
    rows = Structure(page).rows
    for row in (
        ["on, untrained", "0.7400", "−0.0600", "−0.0720 to −0.0480"],
        ["16 and more", "1,216", "1.0000", "0.5000", "−0.5000", "−0.6000 to −0.4000"],
        ["right, with the documents in the database", "39 of 60"],
        ["The population of Peru is", "12,345", "ab…", "12,345", "73,829", "73,8…"],
        ["up to 0.900", "0.9100", "0.9100"],
    ):
        assert any(each[: len(row)] == row for each in rows)
        assert f"| {' | '.join(row)} |" in text
    for said in (page.replace("\N{NO-BREAK SPACE}", " "), text.replace("\\", "")):
        assert "pretrained decoder itself, bit for bit" in said
        assert "which is 80 % of the prompt" in said
        assert "3 gates of 6 began open" in said
        assert "up to layer 3" in said  # is what encodes
        assert "a|b.gguf" in said and "/home/x" not in said.replace("my runs", "")
    structure = Structure(page)
    assert structure.tags.count("svg") == 8 and len(structure.ids) == len(
        set(structure.ids)
    )
    pictures = re.findall(r"\]\((report_files/[\w-]+\.png)\)", text)
    assert len(pictures) == 8
    assert all((tmp_path / "run" / picture).exists() for picture in pictures)


def test_what_was_not_measured_has_no_part(tmp_path):
    page, _ = _retrofit(tmp_path, facts=None, prompt=None, by_longest_run=[])
    anchors = Structure(page).ids
    assert not {"questions", "answers", "prompt", "copied"} & set(anchors)
    assert {"limits", "heads"} <= set(anchors)
    (tmp_path / "own").mkdir()
    page, _ = written(tmp_path / "own", run_files.results())
    assert not {"limits", "heads", "copied"} & set(Structure(page).ids)


def test_what_must_be_known_first_stands_above_the_headline(tmp_path):
    page, text = written(tmp_path, run_files.results(documents=11))
    for said in (page, text):
        headline = said.index("Retrieval lowers")
        assert said.index("intervals themselves are rough") < headline
        assert said.index("one run with one seed (train") < headline


def test_every_condition_has_a_row_a_meaning_and_a_place_in_the_figures(tmp_path):
    found = run_files.results()
    for name in (*config.CONDITIONS, "of tomorrow"):
        found["conditions"].setdefault(name, run_files.condition(1.95, ends=(-1, 1)))
    page, text = written(tmp_path, found)
    for name in verdict.in_order(found["conditions"]):
        label = verdict.LABELS.get(name, name)
        assert f"| {label} | " in text
        assert [row for row in Structure(page).rows if row[0] == label]
        assert f"{name} {found['conditions'][name]['bits_per_byte']:.4f}" in page
    meanings = {row.condition: row.meaning for row in verdict.table(found)}
    assert [name for name, meaning in meanings.items() if not meaning] == [
        *("untrained", "of tomorrow"),  # the former of a retrofit alone
    ]


def test_other_text_gets_a_page_beside_its_results(tmp_path):
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    found = run_files.results() | {"held_out": "notes/<b>.txt"}
    del found["samples"]
    (folder / "notes.json").write_text(json.dumps(found))
    report.write(
        tmp_path / "run", types.SimpleNamespace(manifest=run_files.MANIFEST), "notes"
    )
    page, text = ((folder / f"notes.{ending}").read_text() for ending in ("html", "md"))
    assert "run, notes" in page and "notes/&lt;b&gt;.txt" in page
    assert "](notes_files/difference.png)" in text
    assert (folder / "notes_files" / "difference.png").exists()
    assert "Samples" not in page + text and "not in the database; less" not in page
    assert not (tmp_path / "run" / "report.html").exists()


def test_off_alone_is_not_called_a_baseline_if_the_model_can_read(tmp_path):
    found = run_files.results()
    found["conditions"] = {"off": found["conditions"]["off"]}
    assert verdict.headline(found).startswith("This model was trained without")
    found["by_longest_run"] = []
    assert verdict.headline(found).startswith("Without retrieval: ")
