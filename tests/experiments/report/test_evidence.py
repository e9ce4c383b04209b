"""The report on what was measured, from made-up result files and from those that are kept."""

import json
import re
import xml.etree.ElementTree

import pytest

from experiments import command_line
from experiments.configs import ablations
from experiments.report import claims, evidence, table13
from tests.experiments.report.test_report import Structure


def _conditions(seeds, gain):
    off = {"seeds": seeds, "bits_per_byte": 1.5, "bits_per_byte_interval": [1.4, 1.6]}
    on = off | {
        "bits_per_byte": 1.5 + gain,
        "minus_off": gain,
        "minus_off_interval": [gain - 0.01, gain + 0.01] if seeds > 1 else None,
        "minus_off_documents_interval": [gain - 0.02, gain + 0.02],
        "share_below_off": float(gain < 0),
    }
    return {"off": off, "on": on}


def _made(config, seeds, variants):
    return {
        "variants": variants,
        "made": {
            "command": f"retro launch --config={config} --sweep --out=DIR",
            "commit": "abc123",
            "date": "2001-09-09",
            "machine": {
                "processor": "A <b>CPU</b>",
                "cores": 2,
                "packages": {"jax": "1"},
            },
            "units": seeds,
            "finished": seeds,
            "unit_seconds": 7200.0,
            "databases": [
                {
                    "fingerprint": "83c0",
                    "corpus": "notes",
                    "chunks": {"test": 1255},
                    "documents": {"test": 66},
                    "chunk_len": 64,
                    "dataset": "dead",
                }
            ],
        },
    }


def _ablations(scale, seeds):
    variants = {}
    for number, settings in enumerate(ablations.rows_of(scale).values()):
        gain = 0.05 * number
        beside = {"bits_per_byte": gain, "interval": [gain - 0.01, gain + 0.01]}
        variants[table13.label(settings)] = {
            "conditions": _conditions(seeds, -0.1 + gain),
            **({"minus_first": beside} if number else {}),
        }
    return _made(f"ablations:{scale}", seeds, variants)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both pages of three results, and of a log."""
    folder = tmp_path_factory.mktemp("evidence")
    files = {
        "ablations-small": _ablations("small", 5),
        "retrofit-notes": _made(
            "retrofit", 3, {"": {"conditions": _conditions(3, -0.1)}}
        ),
        "sizes": {
            "split": "test",
            "conditions": {
                "off": {"bits_per_byte": 1.5, "interval": [1.4, 1.6], "minus_off": 0.0}
            },
        },
        "did_not_work": {
            "entries": [{"tried": "a <i>start</i>", "found": "Nothing.", "source": "x"}]
        },
    }
    for name, made in files.items():
        (folder / f"{name}.json").write_text(json.dumps(made))
    evidence.write(folder, folder / "out")
    page = (folder / "out" / "report.html").read_text()
    return page, (folder / "out" / "report.md").read_text(), folder / "out"


def test_both_pages_hold_the_same_numbers_and_where_they_come_from(written):
    page, text, _ = written
    rows = Structure(page).rows
    meaning = table13.MEANINGS["match_only"]
    wanted = [f"match_only: {meaning}", "same sign", "+0.128", "+0.2500"]
    wanted += ["+0.2400 to +0.2600", "n/a", "1.6500"]
    assert wanted in rows
    of_on = ["on", "−0.1000", "−0.1100 to −0.0900", "−0.1200 to −0.0800", "3 of 3"]
    of_on += ["1.4000", "1.4000 to 1.6000"]
    assert of_on in rows
    for row in (wanted, of_on):
        assert "| ".join(cell + " " for cell in row).replace("_", "\\_") in text
    for told in (
        "2001-09-09",
        "abc123",
        "83c0",
        "2 cores",
        "2.00 hours",
        "66 documents",
    ):
        assert told in page and told in text
    command = "retro launch --config=ablations:small --sweep --out=DIR"
    assert command in page and command in text


def test_what_was_not_measured_is_marked_and_few_seeds_are_no_claim(written):
    page, text, _ = written
    headline = (
        "12 claims: 1 measured by five seeds, 2 measured by an observation, 9 not"
    )
    assert headline in page and headline in text
    assert page.count("Not measured.") == len(claims.CLAIMS) - 3
    assert text.count("Not measured.") == len(claims.CLAIMS) - 3
    assert page.count("Fewer than 5 seeds") == 2


def test_the_page_needs_nothing_else_and_is_well_formed(written):
    page, text, out = written
    structure = Structure(page)
    assert len(structure.ids) == len(set(structure.ids))
    assert not [value for name, value in structure.attributes if name == "src"]
    links = {value for name, value in structure.attributes if name == "href"}
    assert {link[1:] for link in links} <= set(structure.ids)
    assert "<i>start" not in page and "A <b>" not in page and "{{" not in page
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for figure in figures:
        xml.etree.ElementTree.fromstring(figure)
    pictures = re.findall(r"\]\((report_files/.*?)\)", text)
    assert len(pictures) == len(figures) == 2
    assert all((out / picture).read_bytes()[:4] == b"\x89PNG" for picture in pictures)


def test_a_smoke_run_says_that_it_is_one():
    page = evidence.make_page({"ablations-smoke": _ablations("smoke", 5)}, [])
    (section,) = (each for each in page["sections"] if each.results)
    assert section.weight == evidence.SMOKE
    assert section.results[0].caveat.startswith("A smoke run")
    assert "1 measured by a smoke run" in page["headline"]


def test_a_result_of_no_claim_has_a_section_of_its_own():
    made = _made("mine.py", 5, {"": {"conditions": _conditions(5, -0.1)}})
    page = evidence.make_page({"mine": made}, [])
    assert page["sections"][-1].claim.title == "mine"
    assert page["sections"][-1].weight == evidence.CLAIM


@pytest.mark.parametrize(
    ("command", "scale"),
    [
        ("retro launch --config=ablations:smoke --sweep", "smoke"),
        ("retro launch --config=experiments/configs/ablations.py:default,gpu", "gpu"),
        ("retro launch --config=ablations --sweep", "paper"),
        ("retro launch --config=retrofit --sweep", None),
        ("", None),
    ],
)
def test_the_scale_is_that_of_the_command(command, scale):
    assert evidence._scale(command) == scale


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', '{"cut": '])
def test_a_file_that_holds_no_results_is_named(text, tmp_path, capsys):
    (tmp_path / "odd.json").write_text(text)
    words = [f"--results={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert command_line.run(evidence.main, words) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/odd.json holds no results" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_kept_results_make_a_report(tmp_path):
    evidence.write(evidence.RESULTS, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for name in evidence.read(evidence.RESULTS):
        assert f"`{name}`" in text
    # What the pages say of copying, prompts and questions stands in the file of its launch.
    kept = evidence.read(evidence.RESULTS)["retrofit-factbook"]["variants"][""]
    found = {each["claim"] for each in kept["findings"]}
    assert found == {"leakage", "prompt", "questions", "updates", "attribution"}
    # A place on somebody's machine is nobody's evidence.
    for path in evidence.RESULTS.glob("*.json"):
        assert not re.search(r'"/(home|work|tmp|root|Users)/', path.read_text()), path


def test_variants_stand_beside_the_first_of_their_launch(tmp_path):
    beside = {"bits_per_byte": 0.125, "interval": [0.1, 0.15]}
    off = {"off": _conditions(5, 0.0)["off"]}
    variants = {
        "": {"conditions": _conditions(5, -0.2)},
        "optimizer.learning_rate=0.0001": {"conditions": off, "minus_first": beside},
    }
    made = _made("finetuned", 10, variants)
    (tmp_path / "finetuned.json").write_text(json.dumps(made))
    evidence.write(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    row = "| optimizer.learning\\_rate=0.0001 | +0.1250 | +0.1000 to +0.1500 | n/a |"
    assert row in text, text
    assert "minus those of the default" in text


def _found(claim, label, kind, mean, seeds):
    ends = [mean - 0.125, mean + 0.125]
    return {
        "claim": claim,
        "label": label,
        "kind": kind,
        "seeds": seeds,
        "mean": mean,
        "interval": ends,
        "of_seeds": [mean] * seeds,
    }


def test_what_a_launch_found_stands_in_the_section_of_its_claim(tmp_path):
    variant = {
        "conditions": _conditions(5, -0.2),
        "findings": [
            _found("leakage", "runs of 8", "gain", -0.25, 5),
            _found("updates", "new number", "share", 0.5, 3),
            _found("retrofit", "something", "number", 2.0, 5),
        ],
    }
    # A launch of many variants would fill the page with those of each.
    other = variant | {"findings": [_found("prompt", "of another", "gain", 1.0, 5)]}
    made = _made("retrofit", 5, {"": variant, "train.steps=3": other})
    page = evidence.make_page({"retrofit-notes": made}, [])
    sections = {each.claim.name: each for each in page["sections"]}
    (leakage,) = sections["leakage"].results
    assert (
        leakage.weight == evidence.CLAIM and leakage.command in made["made"]["command"]
    )
    ends, values = "−0.3750 to −0.1250", "−0.2500 to −0.2500"
    (table,) = leakage.tables
    assert table.rows == [["runs of 8", "−0.2500", ends, values, "5"]]
    (updates,) = sections["updates"].results
    assert updates.weight == evidence.OBSERVATION and updates.caveat
    assert updates.tables[0].rows[0][1] == "50\N{NO-BREAK SPACE}%"
    (own,) = sections["retrofit"].results
    assert own.tables[-1].rows[0][0] == "something" and own.drawn
    assert sections["prompt"].weight == evidence.NOTHING
    (tmp_path / "retrofit-notes.json").write_text(json.dumps(made))
    evidence.write(tmp_path, tmp_path / "out")
    assert "| runs of 8 | −0.2500 |" in (tmp_path / "out" / "report.md").read_text()


def test_what_a_run_found_is_an_observation():
    made = {
        "split": "test",
        "conditions": {
            name: {"bits_per_byte": 1.5, "interval": [1.4, 1.6], "minus_off": gain}
            for name, gain in (("off", 0.0), ("oracle", -0.5))
        },
    }
    page = evidence.make_page({"sizes": made}, [])
    sections = {each.claim.name: each for each in page["sections"]}
    (found,) = sections["leakage"].results
    assert found.weight == evidence.OBSERVATION
    assert [row[1:] for row in found.tables[0].rows] == [["−0.5000", "n/a"]]
