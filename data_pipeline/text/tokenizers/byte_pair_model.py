"""Byte-pair encoding of a pretrained decoder, from a tokenizer.json, without loss.

Called by `tokenizer.py`. Two kinds are known. Byte-level ones write every byte as a letter
of GPT-2's alphabet. Those with byte fallback write a space as U+2581 and what they have no
token for in bytes. The tokenizer is built anew from what its description says of
vocabulary, merges and pre-tokenizer: special tokens are left out of it, so no text becomes
one, and so are truncation, padding, templates, dropout and prefixes.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from data_pipeline.text.tokenizers import pre_tokenizers

if TYPE_CHECKING:
    import tokenizers

# The key of a description under which `tokenizer_files.py` keeps what stands beside it.
# Without it a description is a plain tokenizer.json.
DECLARED = "retro_jax"
# What stands between the documents that a decoder is trained on. Instruction models declare
# the end of a turn as their end; that is no end of a document.
_ENDS = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"]
_ENDS += ["<\uff5cend\u2581of\u2581sentence\uff5c>"]
_BEGINNINGS = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"]
_BEGINNINGS += ["<\uff5cbegin\u2581of\u2581sentence\uff5c>"]

_SPACE_MARK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
_MOST_TOKENS = 2**22
_PART_CHARS = 2**18
# Places where every pre-tokenizer that is accepted begins anew.
_LINE_END, _WORD_END = re.compile(r"\S\n(?=\w)"), re.compile(r"\w(?= \w)")


class BytePairModel:
    """A byte-pair encoding that keeps every byte of the text.

    Attributes:
      model: the description in the one form that is written, a tokenizer.json.
      table: the bytes of each token; none for special tokens.
      eod_id: the end-of-document token.
      bos_id: what stands before a text; the end of the last document where the decoder has
        no token for it alone.
      pad_id: the padding token; may be `eod_id`.
      special_ids: ids of special tokens by name.
      chat_template: how the decoder wants a conversation written, in Jinja; None = no way.
    """

    def __init__(self, description: bytes, source: str) -> None:
        """Builds the tokenizer that a tokenizer.json describes.

        Raises:
          ValueError: in one line, if it is malformed or would lose or change text.
        """
        read = _read_object(description, source)
        body = _object(read, "model", source)
        if body.get("type", "BPE") != "BPE":
            raise ValueError(
                f"{source}: a {body.get('type')!s:.40} tokenizer is not known here, only BPE "
                "over bytes or with byte fallback; of SentencePiece give the .model file"
            )
        ids, added = _ids(body, read.get("added_tokens") or [], source)
        steps = pre_tokenizers.steps(read.get("pre_tokenizer"), source)
        self._is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
        _check_kind(read.get("normalizer"), body, self._is_byte_level, source)
        self._table, words = self._read_words(ids, added, source)
        declared = read.get(DECLARED)
        declared = declared if isinstance(declared, Mapping) else {}
        template = declared.get("chat_template")
        self.chat_template: str | None = template if type(template) is str else None
        specials = {name: t for name, t in ids.items() if added.get(name)}
        self.eod_id = _eod_id(declared, specials, source)
        self.bos_id = _bos_id(declared, specials, self.eod_id)
        self.pad_id = specials.get(_name(declared, "pad_token"), self.eod_id)
        kept = {self.eod_id, self.bos_id, self.pad_id}
        kept |= {specials.get(_name(declared, "eos_token"), self.eod_id)}
        free = {
            name: token
            for name, token in specials.items()
            if token not in kept and name not in (self.chat_template or "")
        }
        taken = self._stand_in(free, words, source)
        self.special_ids = {n: t for n, t in specials.items() if t not in taken}
        merges = _merges(body.get("merges"), ids, self._mergeable(words), source)
        self._tokenizer = _build(body, words, merges, steps, source)
        self._add_words(name for name in ids if added.get(name) is False)
        self.table = [self._table[token] for token in range(len(ids))]
        spelled = {piece[0]: t for t, piece in self._table.items() if len(piece) == 1}
        self._mark_ids_L = np.array(
            [spelled[byte] for byte in _SPACE_MARK.encode()], np.int32
        )
        self.model = _canonical(read, source)

    def encode(self, text: str) -> Int32[np.ndarray, " L"]:
        """Encodes a text in parts of bounded size; raises UnicodeEncodeError for a surrogate."""
        text.encode()
        if self._is_byte_level:
            pieces = [self._encode(part) for part in _parts(text)]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        # U+2581 would come back as a space: it is spelled in bytes instead.
        pieces = []
        for between in text.split(_SPACE_MARK):
            pieces += [self._encode(part) for part in _parts(between)]
            pieces.append(self._mark_ids_L)
        return np.concatenate(pieces[:-1])

    def _encode(self, part: str) -> np.ndarray:
        if not self._is_byte_level:
            part = part.replace(" ", _SPACE_MARK)
        # `encode`, unlike `encode_batch`, starts no threads, which a fork would lose.
        encoding = self._tokenizer.encode(part, add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def _read_words(
        self, ids: Mapping[str, int], added: Mapping[str, bool], source: str
    ) -> tuple[dict[int, bytes], dict[str, int]]:
        """The bytes of every id, and the tokens that merges may make."""
        table, words = dict.fromkeys(ids.values(), b""), {}
        alphabet = byte_letters() if self._is_byte_level else {}
        for name, token in ids.items():
            if name in added:
                if not added[name]:
                    table[token], words[name] = name.encode(), token
            elif not self._is_byte_level:
                is_byte = _BYTE_TOKEN.fullmatch(name)
                spelled = name.replace(_SPACE_MARK, " ").encode()
                table[token] = bytes.fromhex(name[3:5]) if is_byte else spelled
                words[name] = token
            elif name and all(letter in alphabet for letter in name):
                table[token] = bytes([alphabet[letter] for letter in name])
                words[name] = token
        if not self._is_byte_level:
            missing = [b for b in range(256) if f"<0x{b:02X}>" not in words]
            if missing:
                raise ValueError(
                    f"{source}: this tokenizer has no byte fallback for 0x{missing[0]:02x}, "
                    "so it would lose characters: give another"
                )
        return table, words

    def _mergeable(self, words: Mapping[str, int]) -> AbstractSet[str]:
        """What merges may take and make: a text "<0x41>" is not the byte token's name."""
        if self._is_byte_level:
            return words.keys()
        return {name for name in words if not _BYTE_TOKEN.fullmatch(name)}

    def _stand_in(
        self, free: Mapping[str, int], words: dict[str, int], source: str
    ) -> set[int]:
        """Gives bytes that have no token special tokens that nobody uses, the last first.

        SmolLM2 has none for eight bytes, and its own code drops them without a word.
        """
        if not self._is_byte_level:
            return set()
        letters = {byte: letter for letter, byte in byte_letters().items()}
        missing = [
            byte
            for byte in range(256)
            if letters[byte] not in words and byte not in _NOT_IN_UTF8
        ]
        if len(missing) > len(free):
            raise ValueError(
                f"{source}: this tokenizer has no token for byte 0x{missing[0]:02x} "
                f"({len(missing)} such bytes), so it would lose characters: give another"
            )
        chosen = sorted(free.values(), reverse=True)[: len(missing)]
        for byte, token in zip(missing, chosen, strict=True):
            words[letters[byte]] = token
            self._table[token] = bytes([byte])
        return set(chosen)

    def _add_words(self, names: Iterable[str]) -> None:
        """Adds runs of spaces that a decoder has as tokens outside of its merges."""
        from tokenizers import AddedToken

        found = [AddedToken(n, normalized=False, special=False) for n in sorted(names)]
        if found:
            self._tokenizer.add_tokens(found)


def byte_letters() -> dict[str, int]:
    """The byte that each letter of GPT-2's alphabet stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _read_object(description: bytes, source: str) -> dict[str, Any]:
    try:
        read = json.loads(description)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a tokenizer.json ({error!s:.100})") from error
    return read


def _canonical(read: Mapping[str, Any], source: str) -> bytes:
    """What a database and a run keep: the same bytes however the file was written."""
    kept = ("added_tokens", "decoder", "model", "normalizer", "pre_tokenizer", DECLARED)
    written = {name: read[name] for name in kept if name in read} | {"version": "1.0"}
    try:
        return json.dumps(
            written,
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a tokenizer.json ({error!s:.100})") from error


def _object(read: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    value = read.get(name)
    if isinstance(value, dict):
        return value
    raise ValueError(f"{source}: not a tokenizer.json (it has no object {name!r})")


def _ids(
    body: Mapping[str, Any], added_tokens: object, source: str
) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids of all tokens by name, and of added ones whether they are special.

    Only a run of whitespace that is not marked as special is text: any other added token
    is a command.
    """
    ids = dict(_object(body, "vocab", source))
    added: dict[str, bool] = {}
    for entry in added_tokens if isinstance(added_tokens, list) else [added_tokens]:
        fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        name = fields.get("content")
        if not isinstance(name, str) or not name or name in added:
            raise ValueError(f"{source}: its added_tokens are malformed")
        token = fields.get("id", -1)
        if ids.setdefault(name, token) != token:
            raise ValueError(f"{source}: added token {name!r:.60} has two ids")
        added[name] = fields.get("special") is not False or not name.isspace()
    unknown = body.get("unk_token")
    if isinstance(unknown, str) and unknown in ids:
        added[unknown] = True
    if len(ids) > _MOST_TOKENS:
        raise ValueError(f"{source}: {len(ids)} tokens are more than {_MOST_TOKENS}")
    wrong = [n for n, token in ids.items() if type(token) is not int]
    if wrong or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(
            f"{source}: the ids of its {len(ids)} tokens are not each of 0 to {len(ids) - 1}"
            " once"
        )
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{source}: a token is no text ({error!s:.80})") from error
    return ids, added


def _check_kind(
    normalizer: object, body: Mapping[str, Any], is_byte_level: bool, source: str
) -> None:
    """Refuses by name what can't be made lossless.

    Unicode's NFC, which Qwen has, is left out: nearly all text has it already. So are the
    prefix and the replaced spaces of SentencePiece, which `encode` replaces itself.
    """
    if not is_byte_level and body.get("byte_fallback") is not True:
        raise ValueError(
            f"{source}: this tokenizer has neither a byte-level pre-tokenizer nor byte "
            "fallback, so it would lose characters: give another"
        )
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if body.get(affix):
            raise ValueError(f"{source}: {affix} {body[affix]!r:.40} would change text")
    parts = [normalizer]
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "Sequence":
        parts = normalizer.get("normalizers") or []
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
    prefix = {"type": "Prepend", "prepend": _SPACE_MARK}
    harmless: tuple = (None, {"type": "NFC"})
    harmless += () if is_byte_level else (space, prefix)
    for part in parts if isinstance(parts, list) else ["malformed"]:
        if part not in harmless:
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(
                f"{source}: its normalizer {kind!s:.40} changes text: give a tokenizer "
                "without one"
            )


def _merges(
    given: object, ids: Mapping[str, int], mergeable: AbstractSet[str], source: str
) -> list[tuple[str, str]]:
    """The pairs that may be merged, in order; those that would spell a command are left out."""
    merges = []
    for merge in given if isinstance(given, list) else [given]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
            raise ValueError(f"{source}: its merge {merge!r:.60} is malformed")
        left, right = pair
        for name in (left, right, left + right):
            if name not in ids:
                raise ValueError(
                    f"{source}: its merge {merge!r:.60} is of a token that it has not"
                )
            if name not in mergeable:
                break
        else:
            merges.append((left, right))
    return merges


def _build(
    body: Mapping[str, Any],
    words: dict[str, int],
    merges: list[tuple[str, str]],
    steps: list[Mapping],
    source: str,
) -> "tokenizers.Tokenizer":
    import tokenizers

    is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
    pre_tokenizer = pre_tokenizers.build(steps, source)
    try:
        model = tokenizers.models.BPE(
            vocab=words,
            merges=merges,
            byte_fallback=not is_byte_level,
            # Else a text "<0x41>" could become the byte token of that name.
            ignore_merges=is_byte_level and body.get("ignore_merges") is True,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{source}: {error!s:.200}") from error
    made = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    return made


def _name(declared: Mapping[str, Any], key: str) -> str:
    """The name of a token that stands beside a tokenizer.json; '' if there is none."""
    value = declared.get(key)
    return value if isinstance(value, str) else ""


def _eod_id(
    declared: Mapping[str, Any], specials: Mapping[str, int], source: str
) -> int:
    name = _name(declared, "eos_token")
    wanted = [name] if name in _ENDS else []
    for end in (*wanted, *_ENDS, name):
        if end in specials:
            return specials[end]
    raise ValueError(
        f"{source}: this tokenizer has no end-of-document token: name a special token as "
        "eos_token in a tokenizer_config.json beside it"
    )


def _bos_id(
    declared: Mapping[str, Any], specials: Mapping[str, int], eod_id: int
) -> int:
    name = _name(declared, "bos_token")
    for beginning in (name, *_BEGINNINGS):
        if beginning in _BEGINNINGS and beginning in specials:
            return specials[beginning]
    return eod_id


def _parts(text: str) -> Iterator[str]:
    """Cuts a long text where its tokens begin anew, so that memory is bounded."""
    start = 0
    while len(text) - start > 2 * _PART_CHARS:
        window = start + _PART_CHARS, start + 2 * _PART_CHARS
        found = _LINE_END.search(text, *window) or _WORD_END.search(text, *window)
        end = found.end() if found else window[1]
        yield text[start:end]
        start = end
    yield text[start:]
