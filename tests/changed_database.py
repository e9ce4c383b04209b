"""What tests of updates and of damage share: texts to add, bits to flip, what is found."""

from pathlib import Path

from data_pipeline.database import Database, verify

NEWS = "Nine violet tortoises rehearsed an opera inside the marble lighthouse."
OTHER_NEWS = "Four bronze herons audited the accounts of a sleepy cathedral."


def found_in(database, text, k=5):
    return [found.document_id for found in database.search([text], k)[0]]


def opening(database, text) -> str:
    """Of the text, as much as its first chunk holds."""
    return database.tokenizer.decode(
        database.tokenizer.encode(text)[: database.chunk_len]
    )


def flip(path: Path, place: int, bit: int = 0x01) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def place_of(path: Path, text: str) -> int:
    """The place of the last byte of a text in a file."""
    return path.read_bytes().index(text.encode()) + len(text) - 1


def problems(folder: Path) -> dict[str, str]:
    """What `verify` says, by file."""
    checked = verify.files(Database.open(folder).snapshot)
    return {str(path.relative_to(folder)): said for path, said in checked if said}
