"""The text of a Python installation, the embedded default corpus."""

import os
import sys
from pathlib import Path

import pytest

from data_pipeline.text.corpora import Skipped
from data_pipeline.text.readers import python_corpus
from tests.corpus_files import counts, read

CODE = "\n".join(
    f"def function_{'abcdefgh'[i % 8]}(x):\n    return x" for i in range(9)
)


@pytest.fixture
def installation(tmp_path: Path) -> python_corpus.Installation:
    return fake_installation(tmp_path)


def fake_installation(place: Path) -> python_corpus.Installation:
    files = {
        "stdlib/json/decoder.py": '# c\n\n"""Decodes JSON.\n\nMore."""\n' + CODE,
        "stdlib/json/small.py": "x = 1",
        "stdlib/test/test_json.py": CODE,
        "stdlib/table.py": "numbers = [\n" + "1, 2, 3,\n" * 99 + "]",
        "stdlib/names.py": "from numpy import something\n" * 50,
        "stdlib/long.py": CODE + "\nx = '" + "a" * 2000 + "'",
        "stdlib/site-packages/other.py": CODE,
        "site/numpy/linalg/_linalg.py": CODE,
        "site/numpy/tests/test_linalg.py": CODE,
        "site/numpy-2.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: numpy\n"
        "Version: 2.0\nLicense-Expression: BSD-3-Clause\n\n# NumPy\n\n"
        + "Words. "
        * 50,
        "site/aaa/module.py": CODE,
        "site/aaa/latin.py": CODE + "\n# caf\udce9",
        "site/aaa-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: aaa\nVersion: 1\n"
        "Classifier: License :: OSI Approved :: MIT License\n\nshort",
    }
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="surrogateescape"))
    for info in ("numpy-2.0", "aaa-1"):
        package = info.split("-")[0]
        names = [
            n.removeprefix("site/") for n in files if n.startswith("site/" + package)
        ]
        record = "".join(f"{name},,\n" for name in [*names, f"{package}/absent.py"])
        path = place / f"site/{info}.dist-info/RECORD"
        path.write_text(record, encoding="utf-8")
    return python_corpus.Installation(place / "stdlib", (place / "site",))


def test_embedded_corpus(installation: python_corpus.Installation) -> None:
    skipped = Skipped()
    documents = list(python_corpus.read_documents(skipped, roots=installation))
    found = {d.id: (d.title, d.uri, d.licence) for d in documents}
    assert found == {
        "stdlib/json/decoder.py": (
            "json.decoder: Decodes JSON.",
            "stdlib/json/decoder.py",
            "PSF-2.0",
        ),
        "numpy/linalg/_linalg.py": (
            "numpy.linalg._linalg",
            "site-packages/numpy/linalg/_linalg.py",
            "BSD-3-Clause",
        ),
        "numpy/README": (
            "numpy/README",
            "site-packages/numpy-2.0.dist-info/METADATA",
            "BSD-3-Clause",
        ),
        "aaa/module.py": (
            "aaa.module",
            "site-packages/aaa/module.py",
            "MIT License",
        ),
    }
    assert documents[-1].id == "aaa/module.py"  # after all that is preferred
    assert documents[[d.id for d in documents].index("numpy/README")].text[0] == "#"
    reasons = counts(skipped)
    assert reasons.pop("under 200 bytes") == 2
    assert reasons == {
        "data tables": 2,
        "lists of imports": 1,
        "undecodable": 1,
        "unreadable": 2,
    }


def test_embedded_sample_depends_on_no_path(tmp_path: Path) -> None:
    places = [fake_installation(tmp_path / name) for name in ("one", "two/deeper")]
    samples = [
        list(python_corpus.read_documents(Skipped(), roots=place, max_size_bytes=size))
        for place in places
        for size in (1, 10_000_000)
    ]
    assert samples[0] == samples[2]
    assert samples[1] == samples[3]
    assert samples[0] == samples[1][:1]


def test_this_installation_has_text() -> None:
    documents, _ = read("", max_size_bytes=300_000)
    assert documents == read("python", max_size_bytes=300_000)[0]
    size_bytes = [len(document.text.encode()) for document in documents]
    assert sum(size_bytes[:-1]) < 300_000 <= sum(size_bytes)
    assert all(document.title and document.uri for document in documents)
    assert not [d for d in documents if sys.prefix in d.uri + d.id + d.title]


def test_a_name_that_is_no_utf_8(installation: python_corpus.Installation) -> None:
    (installation.stdlib / os.fsdecode(b"caf\xe9.py")).write_text(CODE)
    documents = list(python_corpus.read_documents(Skipped(), roots=installation))
    assert "stdlib/caf\ufffd.py" in [document.id for document in documents]
