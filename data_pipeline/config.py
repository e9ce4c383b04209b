"""Settings of the data: the corpus, the database and the sequences made from them."""

import dataclasses

INDEX_KINDS = ("auto", "exact", "scann", "faiss-flat", "faiss-ivfpq")


# What `corpus` names this Python's own text by, and all names of text that is installed.
PYTHON_CORPUS = ("", "python")
INSTALLED_CORPORA = (*PYTHON_CORPUS, "factbook")

# Of 256 countries: an interval needs documents.
_HELD_OUT_SHARES = {"factbook": (0.06, 0.32)}


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class DataConfig:
    """From text to batches. Changing a field makes again what depends on it, no more."""

    # folder, file, tfds:NAME, hf:NAME, factbook, or python: this Python's own text, as ''
    corpus: str = ""
    # field of a record that has its text; '' = text, content, body and their like
    text_column: str = ""
    max_document_bytes: int = 600_000_000  # a longer text is left out
    part_bytes: int = 1_000_000  # a longer text is cut into parts, each a document
    embedded_size_bytes: int = 8_000_000  # how much of this Python's own text
    validation_share: float | None = None  # of documents; [0.02, of the Factbook 0.06]
    test_share: float | None = None  # of documents; [0.04, of the Factbook's few 0.32]
    tokenizer: str = (
        ""  # .model, tokenizer.json, decoder's folder or .gguf; '' = train one
    )
    vocab_size: int = 4096  # of a trained tokenizer, at most
    chunk_len: int = 64  # tokens (M)
    embedder: str = "minilm"  # or a folder with a BERT, or a sentence-transformers name
    # auto | exact | scann | faiss-flat | faiss-ivfpq; auto = exact while it is small,
    # then ScaNN
    index: str = "auto"
    recall_target: float = 0.97  # recall@2 that an approximate index is tuned to
    index_shard_rows: int = 1_000_000  # chunks of an index; the memory to build one
    lexical: bool = False  # index the words too, for search by rank="hybrid"
    candidates: int = 8  # neighbours kept for a chunk; a sequence picks among them
    # text of a shard, the unit of work and of resuming
    shard_size_bytes: int = 2_000_000
    sequence_chunks: int = 8  # chunks of a sequence (C)
    num_neighbours: int = 2  # of a chunk (N)
    neighbour_len: int = 128  # tokens of a neighbour (R), a multiple of chunk_len
    seed: int = 0  # order of documents in training sequences

    @property
    def held_out_shares(self) -> tuple[float, float]:
        """The shares of documents that are held out for validation and test."""
        validation, test = _HELD_OUT_SHARES.get(self.corpus, (0.02, 0.04))
        if self.validation_share is not None:
            validation = self.validation_share
        return validation, test if self.test_share is None else self.test_share

    @property
    def corpus_name(self) -> str:
        """What to call the corpus where it is spoken of."""
        names = {
            "factbook": "the World Factbook",
            **dict.fromkeys(PYTHON_CORPUS, "the text of this Python installation"),
        }
        return names.get(self.corpus, self.corpus)

    @property
    def corpus_size_bytes(self) -> int | None:
        """How much of the corpus is read; None for all of it."""
        return self.embedded_size_bytes if self.corpus in PYTHON_CORPUS else None

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the data can't be made."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < (0 if field.name == "seed" else 1):
                raise ValueError(f"data.{field.name} must be at least 1, is {value}")
        if self.index not in INDEX_KINDS:
            raise ValueError(
                f"data.index must be one of {', '.join(INDEX_KINDS)}, is {self.index!r}"
            )
        if self.neighbour_len % self.chunk_len:
            raise ValueError(
                f"data.neighbour_len {self.neighbour_len} is not a multiple of "
                f"data.chunk_len {self.chunk_len}"
            )
        if self.candidates < self.num_neighbours:
            raise ValueError(
                f"data.candidates {self.candidates} is less than data.num_neighbours "
                f"{self.num_neighbours}"
            )
        if not 0 < self.recall_target <= 1:
            raise ValueError(
                f"data.recall_target must be in (0, 1], is {self.recall_target}"
            )
        shares = self.held_out_shares
        if not (min(shares) >= 0 and sum(shares) < 1):  # so that NaN is refused, too
            raise ValueError(
                "data.validation_share and data.test_share must not be negative and "
                f"must leave something to train on, are {shares}"
            )
