"""PDF and Word files: their text with the extra, what to install without it."""

import io
import sys
import zipfile
from pathlib import Path

import pytest

from data_pipeline.text.readers.source_file import Reading
from tests.corpus_files import read


def pdf(text: str, title: str = "") -> bytes:
    """A PDF of one page, written as the format says."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        + b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Title ({title}) >>".encode(),
    ]
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    trailer = b"trailer\n<< /Size %d /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF"
    out.write(trailer % (len(objects) + 1, table))
    return out.getvalue()


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    whole = pdf("The secret of the walrus is 42", "Walruses")
    (tmp_path / "a.pdf").write_bytes(whole)
    (tmp_path / "b.pdf").write_bytes(pdf("untitled"))
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4 and no more")
    (tmp_path / "d.pdf").write_bytes(b"")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    documents, skipped = read(tmp_path)
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("a.pdf", "Walruses", "The secret of the walrus is 42"),
        ("b.pdf", "b", "untitled"),
    ]
    assert skipped == {"damaged": 2, "empty": 1}
    reading = Reading(max_document_bytes=10)
    assert (
        read(tmp_path, reading=reading)[1]["larger than data.max_document_bytes"] == 1
    )


def test_word(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.core_properties.title = "Memo"
    document.add_paragraph("First, a paragraph.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    document.add_paragraph("Last.")
    document.save(str(tmp_path / "a.docx"))
    (tmp_path / "b.docx").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "c.docx", "w") as archive:
        archive.writestr("other.xml", "<a/>")
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"a" * 20_000_000)
    documents, skipped = read(tmp_path)
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("a.docx", "Memo", "First, a paragraph.\n\nleft right\n\nLast.")
    ]
    assert skipped == {"damaged": 2, "too large (expands more than 500 times)": 1}


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("a.pdf", "pypdf", "pypdf"), ("a.docx", "docx", "python-docx")],
)
def test_without_the_extra(
    name: str,
    module: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(pdf("text"))
    with pytest.raises(ValueError, match=rf"pip install {package}: {name}"):
        read(tmp_path)
