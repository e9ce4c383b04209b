"""The documents stage: from a corpus to the tables of its documents, in four steps.

    texts/      each part of the corpus, read; of every document what choosing needs
    kept/       which documents remain, and in which table
    tables/     each table, written
    documents/  the tables as one stage; the other three go

Parts and tables are made by any engine. The choice needs to know of all documents at once,
but sees no text.

Letters here: G grams of a text.
"""

import dataclasses
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import DataConfig
from data_pipeline.storage.files import link, read_json, write_json
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.storage.printing import counted
from data_pipeline.text import corpora, long_documents
from data_pipeline.text.copies import deduplicate
from data_pipeline.text.document_store import Spool, Writer
from data_pipeline.text.documents import Document, Skipped, write_documents
from data_pipeline.text.readers.source_file import Reading

_KEYS, _SIGNATURES, _SKIPPED = "keys.parquet", "signatures.npy", "skipped.json"
# The grams of all documents, one after the other, and how many each has.
_GRAMS, _GRAM_COUNTS = "grams", "gram_counts.npy"
_KEYS_SCHEMA = pa.schema(
    {"id": pa.string(), "digest": pa.binary(), "size_bytes": pa.int64()}
)
_FACTS = "facts.json"


@dataclasses.dataclass(frozen=True)
class TextsWork:
    """Reads a part of the corpus; reports how many files it had.

    Attributes:
        part_bytes: a longer document is cut.
    """

    cfg: DataConfig
    parts: tuple[corpora.Part, ...]
    part_bytes: int

    def __call__(self, shard: str, out: Path) -> Iterator[int | str]:
        """Writes the part; raises what `corpora.read_part` raises."""
        cfg, part, skipped = self.cfg, self.parts[int(shard)], Skipped()
        if not part:
            yield f"reading {cfg.corpus_name}"
        holds_out = sum(cfg.held_out_shares) > 0
        sign = _signer() if holds_out else None
        keys: dict[str, list] = {name: [] for name in _KEYS_SCHEMA.names}
        signatures, gram_counts = [], []
        with Writer(out) as spool, (out / _GRAMS).open("wb") as grams:
            for document in self._documents(part, skipped):
                spool.append(document)
                keys["id"].append(document.id)
                keys["digest"].append(deduplicate.digest(document.text))
                keys["size_bytes"].append(len(document.text.encode()))
                if sign is not None:
                    grams_G = sign.grams(document.text)
                    grams.write(grams_G.tobytes())
                    gram_counts.append(len(grams_G))
                    signatures.append(sign.signature(grams_G))
        pq.write_table(pa.table(keys, _KEYS_SCHEMA), out / _KEYS)
        np.save(out / _SIGNATURES, np.array(signatures, np.uint32))
        np.save(out / _GRAM_COUNTS, np.array(gram_counts, np.int64))
        write_json(out / _SKIPPED, skipped.as_dict())
        yield len(part)

    def _documents(self, part: corpora.Part, skipped: Skipped) -> Iterator[Document]:
        cfg = self.cfg
        limit = cfg.corpus_size_bytes
        reading = Reading(cfg.text_column, cfg.max_document_bytes)
        for document in corpora.read_part(cfg.corpus, part, skipped, limit, reading):
            yield from long_documents.cut(document, self.part_bytes)


@dataclasses.dataclass(frozen=True)
class KeptWork:
    """Chooses the documents that remain, in one piece, and the tables that they go to.

    Attributes:
        texts: folders of the parts that were read, in order.
        skipped: what could not even be looked for, as `Skipped.as_dict`.
    """

    cfg: DataConfig
    texts: tuple[Path, ...]
    skipped: Mapping

    def __call__(self, shard: str, out: Path) -> Iterator[str]:
        """Writes the choice; raises ValueError if there is no text to train on."""
        cfg = self.cfg
        keys = pa.concat_tables(
            [
                _KEYS_SCHEMA.empty_table(),
                *(pq.read_table(t / _KEYS) for t in self.texts),
            ]
        )
        skipped = Skipped()
        for found in (self.skipped, *(read_json(t / _SKIPPED) for t in self.texts)):
            skipped.include(found or {})
        if not keys.num_rows:
            raise corpora.no_usable_text(cfg.corpus, skipped)
        ids = corpora.unique_ids(keys["id"].to_pylist())
        kept = self._choose(ids, keys["digest"].to_pylist())
        for line in skipped.summary_lines():
            yield f"left out: {line}"
        if not kept.numbers["train"]:
            raise ValueError(
                f"no training document is left of {cfg.corpus!r}: give more text, "
                "or smaller data.validation_share and data.test_share"
            )
        facts: dict = {
            "exact_duplicates": kept.exact_duplicates,
            "near_duplicates": kept.near_duplicates,
            "contained": kept.contained,
            "skipped": skipped.as_dict(),
        }
        sizes_bytes = keys["size_bytes"].to_numpy()
        for split, numbers in kept.numbers.items():
            size = int(sizes_bytes[numbers].sum())
            facts[split] = {"documents": len(numbers), "size_bytes": size}
            self._write_tables(out, split, numbers, ids, sizes_bytes[numbers])
            yield f"{split}: {counted(len(numbers), 'document')}, {size / 1e6:.2f} MB"
        yield (
            f"dropped {kept.exact_duplicates} exact duplicates, {kept.near_duplicates} near "
            f"copies of held-out documents and {kept.contained} that stand in another"
        )
        if self.cfg.held_out_shares[1] > 0 and not kept.numbers["test"]:
            yield (
                "no document is left for the test split, so nothing will be measured: "
                "it takes two documents that are not copies"
            )
        write_json(out / _FACTS, facts)

    def _choose(self, ids: list[str], digests: list[bytes]) -> deduplicate.Kept:
        signatures = [open_array(text / _SIGNATURES) for text in self.texts]
        ends = [np.cumsum(open_array(text / _GRAM_COUNTS)) for text in self.texts]
        with Spool(self.texts) as spool:

            def signature_of(number: int) -> np.ndarray:
                part, row = spool.place(number)
                return signatures[part][row]

            def grams_of(number: int) -> np.ndarray:
                part, row = spool.place(number)
                start = int(ends[part][row - 1]) if row else 0
                # Read when asked for: a map of each part would keep its file open.
                return np.fromfile(
                    self.texts[part] / _GRAMS,
                    np.uint32,
                    int(ends[part][row]) - start,
                    offset=4 * start,
                )

            return deduplicate.choose(
                ids,
                digests,
                signature_of,
                grams_of,
                *self.cfg.held_out_shares,
            )

    def _write_tables(
        self,
        out: Path,
        split: str,
        numbers: list[int],
        ids: list[str],
        sizes_bytes: np.ndarray,
    ) -> None:
        """Writes for each table which documents it holds: number, id and row in the split."""
        for count, rows in enumerate(
            _rows_of_tables(sizes_bytes, self.cfg.shard_size_bytes)
        ):
            chosen = [numbers[row] for row in rows]
            columns = {
                "number": chosen,
                "id": [ids[number] for number in chosen],
                "row": list(rows),
            }
            pq.write_table(pa.table(columns), out / f"{split}-{count:05d}.parquet")


def _rows_of_tables(
    sizes_bytes: Sequence[int] | np.ndarray, table_size_bytes: int
) -> Iterator[range]:
    """Rows of tables of about so many bytes: each ends with the document that fills it."""
    start = size_bytes = 0
    for row, of_document in enumerate(sizes_bytes):
        size_bytes += of_document
        if size_bytes >= table_size_bytes or row == len(sizes_bytes) - 1:
            yield range(start, row + 1)
            start, size_bytes = row + 1, 0


def tables(kept: Path) -> dict[str, int]:
    """Names of the tables to write, and how many documents each will have."""
    paths = sorted(kept.glob("*.parquet"))
    return {path.stem: pq.read_metadata(path).num_rows for path in paths}


@dataclasses.dataclass(frozen=True)
class TablesWork:
    """Writes a table of documents; reports how many it has."""

    texts: tuple[Path, ...]
    kept: Path

    def __call__(self, shard: str, out: Path) -> Iterator[int]:
        chosen = pq.read_table(self.kept / f"{shard}.parquet").to_pydict()
        with Spool(self.texts) as spool:
            documents = [
                dataclasses.replace(spool.read(number), id=unique)
                for number, unique in zip(chosen["number"], chosen["id"], strict=True)
            ]
        first_row = chosen["row"][0]
        write_documents(out / f"{shard}.parquet", documents, first_row=first_row)
        yield len(documents)


@dataclasses.dataclass(frozen=True)
class DocumentsWork:
    """Brings all tables together, by links where the file system can."""

    kept: Path
    tables: Path

    def __call__(self, shard: str, out: Path) -> Iterator[str]:
        yield from ()
        for name in tables(self.kept):
            link(self.tables / name / f"{name}.parquet", out / f"{name}.parquet")
        shutil.copyfile(self.kept / _FACTS, out / _FACTS)


_signer = functools.cache(deduplicate.Signer)  # it learns words as it goes
