"""Text to tokens and back, without loss: a pretrained decoder's tokenizer or our own.

Called by the chunker, by the database (to show text) and by generation. The one thing
to know: every tokenizer here is lossless. The bytes of the tokens of a text are the
UTF-8 bytes of the text, for any text, so bits per byte can be summed over tokens; and no
text becomes a special token, whatever it says.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from data_pipeline.storage.files import write_file
from data_pipeline.text.tokenizers import sentencepiece_model, tokenizer_files
from data_pipeline.text.tokenizers.byte_pair_model import BytePairModel
from data_pipeline.text.tokenizers.sentencepiece_model import SentencePieceModel

_PROBE = " a  b\n\t<s></s><0x41><|endoftext|>\u00e9\u4e2d\ufb01\r\n \U0001f923\0 "


class Tokenizer:
    """A tokenizer that keeps every byte of the text.

    Attributes:
      vocab_size: number of token ids; smaller than asked for when the text was small.
      eod_id: the end-of-document token; `encode` never emits it.
      bos_id: what stands before a text as its decoder was trained, None where nothing does;
        `encode` never emits it, and neither any other special token.
      pad_id: the padding token; of a pretrained decoder it may be `eod_id`.
      special_ids: ids of special tokens by name; they have no bytes.
      chat_template: how the decoder wants a conversation written, in Jinja, or None.
      model: the bytes that make it again: a SentencePiece model or a tokenizer.json.
      token_bytes_V: int32, UTF-8 bytes of each token, 0 for special tokens.
      fingerprint: first 16 hexadecimal digits of the sha256 of `model`.
    """

    def __init__(self, model: bytes, source: str) -> None:
        """Makes a tokenizer of a SentencePiece model or of a tokenizer.json.

        Args:
          model: its bytes; a description in JSON begins with '{', a model never.
          source: what to call it in errors.
        Raises:
          ValueError: if it is neither, has no token for every byte or no end-of-document
            token, or does not reproduce text.
        """
        is_json = model.startswith(b"{")
        made = (BytePairModel if is_json else SentencePieceModel)(model, source)
        self._encode = made.encode
        self._table = made.table
        self.model = made.model
        self.vocab_size = len(made.table)
        self.eod_id: int = made.eod_id
        self.bos_id = made.bos_id
        self.pad_id: int = made.pad_id
        self.special_ids = made.special_ids
        self.chat_template = made.chat_template
        self.token_bytes_V: Int32[np.ndarray, " V"] = np.array(
            [len(piece) for piece in made.table], np.int32
        )
        self.token_bytes_V.flags.writeable = False
        self.fingerprint = hashlib.sha256(self.model).hexdigest()[:16]
        if self.decode_bytes(self.encode(_PROBE)) != _PROBE.encode():
            raise ValueError(
                f"{source}: this tokenizer does not reproduce text exactly"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Loads any tokenizer that can be made lossless.

        Whatever it says of normalisation, of a prefix and of the squeezing of spaces is
        switched off, for else text would not come back as it was.

        Args:
          path: a SentencePiece `.model` with byte fallback, a `tokenizer.json`, a Hugging
            Face folder that holds one of them, or a `.gguf`.
        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: see `Tokenizer`.
        """
        return cls(tokenizer_files.read(path), str(path))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        path: str | os.PathLike[str],
        *,
        sample_size_bytes: int = 10_000_000,
    ) -> "Tokenizer":
        """Trains a unigram tokenizer, writes it to `path` and returns it.

        The same texts give the same bytes, in whatever order they come: the sample is
        the blocks with the smallest hashes. About 2 CPU-seconds a megabyte.

        Args:
          texts: the training documents; read once, never held whole.
          vocab_size: most tokens to have; a small text gives fewer.
          path: the `.model` file to write; its folder is made if need be.
          sample_size_bytes: UTF-8 bytes of text to train on.
        Raises:
          ValueError: if `vocab_size` is below `MIN_VOCAB_SIZE` or there is no text.
        Source: SentencePiece as in the paper (section 3.1); unigram with byte fallback
          is ours: it encodes four times as fast as BPE and loses nothing.
        """
        model = sentencepiece_model.train(texts, vocab_size, sample_size_bytes)
        tokenizer = cls(model, str(path))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), model)
        return tokenizer

    def encode(self, text: str) -> Int32[np.ndarray, " L"]:
        """Encodes a text; no end-of-document token is added.

        A special token's name in the text ("<s>", "<|endoftext|>") is text like any other.

        Raises:
          UnicodeEncodeError: (a ValueError) if the text has a lone surrogate.
        """
        return self._encode(text)

    def encode_parts(self, parts: Iterable[str | int]) -> Int32[np.ndarray, " L"]:
        """Encodes what is made of text and of special tokens, as a chat template wants it.

        Args:
          parts: a str is plain text, an int is one of `special_ids`' ids.
        Raises:
          ValueError: if an id is none of a special token; as `encode`.
        """
        specials = {*self.special_ids.values(), self.eod_id}
        pieces = [np.zeros(0, np.int32)]
        for part in parts:
            if isinstance(part, str):
                pieces.append(self.encode(part))
            elif part in specials:
                pieces.append(np.array([part], np.int32))
            else:
                raise ValueError(f"{part} is the id of no special token")
        return np.concatenate(pieces)

    def encode_batch(self, texts: Iterable[str]) -> list[Int32[np.ndarray, " L"]]:
        """Encodes several texts; see `encode`."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Gives the bytes of tokens; control tokens (padding, end) have none.

        Raises:
          ValueError: if an id is outside the vocabulary.
        """
        ids_L = np.asarray(ids, np.int64)
        if ids_L.size and not 0 <= ids_L.min() <= ids_L.max() < self.vocab_size:
            raise ValueError(
                f"token ids {ids_L.min()}..{ids_L.max()} outside 0..{self.vocab_size - 1}"
            )
        return b"".join([self._table[token] for token in ids_L.tolist()])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Gives the text of tokens; a cut character becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")
