"""Readers of PDF and Word files, by libraries that are an extra (`documents`)."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.text.documents import Document
from data_pipeline.text.readers.compression import (
    DamagedFileError,
    LeftOutError,
    check_expansion,
)
from data_pipeline.text.readers.encodings import without_surrogates
from data_pipeline.text.readers.source_file import TOO_LARGE, SourceFile


def read_pdf(file: SourceFile) -> Iterator[Document]:
    """The text of a PDF's pages; of scanned pages there is none."""
    try:
        import pypdf
    except ImportError:
        file.skipped.add("PDF, not read without pypdf: pip install pypdf", file.name)
        return
    try:
        with pypdf.PdfReader(file.path) as pdf:
            if pdf.is_encrypted and not pdf.decrypt(""):
                file.skipped.add("PDF with a password", file.name)
                return
            pages = _within_limit(file, (page.extract_text() for page in pdf.pages))
            title = str((pdf.metadata and pdf.metadata.title) or "")
    except (OSError, MemoryError, LeftOutError):
        raise
    except Exception as error:  # damaged PDFs make the library raise whatever there is
        raise DamagedFileError(str(error)) from error
    text, title = map(without_surrogates, ("\n\n".join(pages), title.strip()))
    yield from file.document(text, title)


def read_docx(file: SourceFile) -> Iterator[Document]:
    """Paragraphs and tables of a Word document."""
    try:
        import docx
        import docx.table
    except ImportError:
        reason = "Word, not read without python-docx: pip install python-docx"
        file.skipped.add(reason, file.name)
        return
    _check_archive(file.path, file.reading.max_document_bytes)
    try:
        document = docx.Document(str(file.path))
        blocks = [
            "\n".join(" ".join(cell.text for cell in row.cells) for row in block.rows)
            if isinstance(block, docx.table.Table)
            else block.text
            for block in document.iter_inner_content()
        ]
        title = document.core_properties.title or ""
    except (OSError, MemoryError):
        raise
    except Exception as error:  # as of PDFs
        raise DamagedFileError(str(error)) from error
    yield from file.document("\n\n".join(blocks), title.strip())


def _within_limit(file: SourceFile, pages: Iterator[str]) -> list[str]:
    kept, size = [], 0
    for page in pages:
        kept.append(page)
        size += len(page)
        if size > file.reading.max_document_bytes:
            raise LeftOutError(TOO_LARGE)
    return kept


def _check_archive(path: Path, max_bytes: int) -> None:
    """Looks at the sizes that an archive declares; more than those it never gives."""
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DamagedFileError(str(error)) from error
    if size_bytes > max_bytes:
        raise LeftOutError(TOO_LARGE)
    check_expansion(size_bytes, path.stat().st_size)
