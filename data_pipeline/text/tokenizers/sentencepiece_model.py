"""SentencePiece without loss, and how one is trained on a corpus.

Called by `tokenizer.py`. Normalisation, the dummy prefix and the squeezing of spaces are
switched off whatever a model says, and we keep our own table of each token's bytes.
"""

import hashlib
import heapq
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAD_ID, EOD_ID, UNK_ID = 0, 1, 2
# The three control pieces, one piece a byte, and the space.
MIN_VOCAB_SIZE = 3 + 256 + 1

_SPACE_MARK = "\u2581"  # how SentencePiece writes a space inside its pieces
_SPACE_MARK_BYTES = _SPACE_MARK.encode()
_RESERVED = (_SPACE_MARK, "\u2585", "\0")  # the trainer drops sentences with these
_CHARACTER_COVERAGE = 0.9995
_BLOCK_CHARS = 4096
# SentencePiece aborts on texts of too little variety or without a space: this is added.
_PANGRAM = "the quick brown fox jumps over the lazy dog, and then the dog sleeps on.\n"
# A ModelProto that holds nothing but normalizer_spec (field 3): name="identity",
# precompiled_charsmap="", add_dummy_prefix=False, remove_extra_whitespaces=False,
# escape_whitespaces=True, normalization_rule_tsv="". Appended to a model it overrides
# the model's own, as protobuf merges what is concatenated; so no generated protobuf
# code is needed, whose version would have to suit every other package's.
_LOSSLESS_EDIT = b"\x1a\x14\x0a\x08identity\x12\x00\x18\x00\x20\x00\x28\x01\x32\x00"


class SentencePieceModel:
    """A SentencePiece model that keeps every byte of the text.

    Attributes: as of `BytePairModel`; it has no chat template.
    """

    def __init__(self, model: bytes, source: str) -> None:
        """Loads a serialised model.

        Raises:
          ValueError: if it is no SentencePiece model, or lacks byte fallback or an
            end-of-document (eos) token.
        """
        processor = _load_lossless(model, source)
        tokens = range(processor.vocab_size())
        self.model = model
        self._processor = processor
        self.table = [_token_bytes(processor, token) for token in tokens]
        self._mark_ids_L = np.array(_mark_ids(processor, source), np.int32)
        self.eod_id = _eod_id(processor.eos_id(), source)
        bos_id = processor.bos_id()
        self.bos_id: int | None = bos_id if bos_id >= 0 else None
        # With byte fallback <unk> is never emitted, so it can pad where <pad> is absent.
        pad_id = processor.pad_id()
        self.pad_id: int = pad_id if pad_id >= 0 else processor.unk_id()
        self.special_ids: dict[str, int] = {
            processor.id_to_piece(t): t for t in tokens if processor.is_control(t)
        }
        self.chat_template: str | None = None

    def encode(self, text: str) -> Int32[np.ndarray, " L"]:
        """Encodes a text; raises UnicodeEncodeError for a lone surrogate."""
        parts = text.encode().split(_SPACE_MARK_BYTES)
        ids_L = self._processor.encode(parts[0], out_type="numpy")
        if len(parts) == 1:
            return ids_L
        # U+2581 would come back as a space: it is spelled in bytes instead.
        pieces = [ids_L]
        for part in parts[1:]:
            pieces.append(self._mark_ids_L)
            pieces.append(self._processor.encode(part, out_type="numpy"))
        return np.concatenate(pieces)


def train(texts: Iterable[str], vocab_size: int, sample_size_bytes: int) -> bytes:
    """Trains a unigram model and gives its bytes; see `Tokenizer.train`."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size={vocab_size}: must be at least {MIN_VOCAB_SIZE}"
            " (one token a byte, three control tokens, the space)"
        )
    blocks = sample_blocks(texts, sample_size_bytes)
    if not blocks:
        raise ValueError("no text to train a tokenizer on: every document is empty")
    return _train(blocks, vocab_size)


def sample_blocks(texts: Iterable[str], sample_size_bytes: int) -> list[str]:
    """Chooses blocks of text up to a size, whatever order the texts come in.

    Args:
      texts: documents; read once.
      sample_size_bytes: the sample holds no fewer UTF-8 bytes, if there are so many,
        and less than one block (`_BLOCK_CHARS` characters) more.
    Returns:
      The blocks with the smallest hashes, by hash.
    """
    heap: list[tuple[int, str, int]] = []  # the largest hash first
    held_bytes = 0
    for block in _blocks(texts):
        data = block.encode()
        digest = hashlib.blake2b(data, digest_size=8).digest()
        heapq.heappush(heap, (-int.from_bytes(digest, "big"), block, len(data)))
        held_bytes += len(data)
        while held_bytes - heap[0][2] >= sample_size_bytes and len(heap) > 1:
            held_bytes -= heapq.heappop(heap)[2]
    return [block for _, block, _ in sorted(heap, reverse=True)]


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _BLOCK_CHARS):
            block = text[start : start + _BLOCK_CHARS]
            if block.strip():
                yield block


def _train(blocks: list[str], vocab_size: int) -> bytes:
    import sentencepiece

    blocks = [*blocks, _PANGRAM]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_without_rare_characters(blocks, vocab_size),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        max_sentence_length=_BLOCK_CHARS * 4,
        num_threads=1,  # more threads sum in another order: other pieces
        pad_id=PAD_ID,
        eos_id=EOD_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="<eod>",
        minloglevel=2,
    )
    return model.getvalue()


def _without_rare_characters(blocks: list[str], vocab_size: int) -> Iterator[str]:
    """Leaves rare characters to byte tokens, so that the others surely fit.

    SentencePiece's own way, character_coverage, refuses any share below 98 %.
    """
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update(block)
    wanted = _CHARACTER_COVERAGE * counts.total()
    covered = counts.pop(" ", 0)  # always kept: without it a space has no spelling
    most = (vocab_size - MIN_VOCAB_SIZE) // 2
    rare = dict.fromkeys(map(ord, _RESERVED), " ")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for rank, (character, count) in enumerate(ranked):
        if covered >= wanted or rank >= most:
            rare[ord(character)] = " "
        covered += count
    return (block.translate(rare) for block in blocks)


def _load_lossless(model: bytes, source: str) -> "SentencePieceProcessor":
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model + _LOSSLESS_EDIT)
    except RuntimeError as error:
        raise ValueError(f"{source}: not a SentencePiece model ({error})") from error
    return processor


def _token_bytes(processor: "SentencePieceProcessor", token: int) -> bytes:
    if processor.is_control(token) or processor.is_unknown(token):
        return b""
    piece: str = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[3:5], 16)])  # '<0x41>'
    return piece.replace(_SPACE_MARK, " ").encode()


def _mark_ids(processor: "SentencePieceProcessor", source: str) -> list[int]:
    """The byte tokens that spell U+2581, in a model that has all the byte tokens."""
    ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    if not all(processor.is_byte(token) for token in ids):
        raise ValueError(
            f"{source}: this tokenizer has no byte fallback, so it would lose"
            " characters; train it with --byte_fallback=true"
        )
    return [ids[byte] for byte in _SPACE_MARK_BYTES]


def _eod_id(eos_id: int, source: str) -> int:
    if eos_id < 0:
        raise ValueError(
            f"{source}: this tokenizer has no end-of-document token;"
            " train it with --eos_id=1 or another free id"
        )
    return eos_id
