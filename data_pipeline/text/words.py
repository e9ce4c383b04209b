"""The words of a text in any script, for near copies and for search by words.

Where words are written apart they are runs of letters, digits and underscores. Chinese,
Japanese, Thai, Lao, Khmer, Burmese and their kin write none apart, so a run there is a
clause: each of their characters counts as a word. Full-width and half-width forms are one
(NFKC), and so are capitals and small letters.
"""

import re
import unicodedata
from collections.abc import Iterator

_BLOCK_CHARS = 1 << 20
# First and last code points of scripts without spaces between words.
_SPACELESS_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),  # marks among Chinese characters
    (0x3040, 0x31FF),  # Hiragana, Katakana, Bopomofo
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Burmese
    (0xAA60, 0xAADF),  # Burmese, Tai Viet
)
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def _spaceless() -> str:
    """The characters of words in these scripts, as they stand in a regular expression.

    Vowel signs are marks and no letters, and belong to words all the same.
    """
    characters = (chr(c) for a, b in _SPACELESS_BLOCKS for c in range(a, b + 1))
    return _IDEOGRAPHS + "".join(
        character
        for character in characters
        if unicodedata.category(character)[0] in "LMN"
    )


_SPACELESS = _spaceless()
_WORD = re.compile(rf"[^\W{_SPACELESS}]+|[{_SPACELESS}]")
_RUN = re.compile(rf"[^\W{_SPACELESS}]+|[{_SPACELESS}]+")
_IN_ASCII = re.compile(r"\w+")  # the same there, and faster
_IS_SPACELESS = re.compile(rf"[{_SPACELESS}]")
_SPACE = re.compile(r"\s")


def words(text: str) -> list[str]:
    """The words of a text, in order; none for the empty text or punctuation."""
    text = _folded(text)
    return (_IN_ASCII if text.isascii() else _WORD).findall(text)


def words_in_blocks(text: str) -> Iterator[list[str]]:
    """The words of a text, about a million characters at a time.

    A list of words takes ten times the memory of their text, so a long one is never held.
    """
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + _BLOCK_CHARS)
        end = space.end() if space else len(text)
        yield words(text[start:end])
        start = end


def search_terms(text: str) -> list[str]:
    """What search by words indexes and asks for: words, and pairs of spaceless characters.

    A pair says more than its characters do, as a word says more than its letters.
    """
    text = _folded(text)
    if text.isascii():
        return _IN_ASCII.findall(text)
    terms = []
    for run in _RUN.findall(text):
        if _IS_SPACELESS.match(run):
            terms += run
            terms += [run[place : place + 2] for place in range(len(run) - 1)]
        else:
            terms.append(run)
    return terms


def rest_of_word(text: str, following: str) -> str:
    """What of `following` belongs to the word that the end of `text` cuts.

    Of a script without spaces that is one character: the pair that is cut needs no more.
    """
    rest = _WORD.match(following)
    is_cut = rest and _WORD.match(text[-1:])
    return rest.group() if rest and is_cut else ""


def _folded(text: str) -> str:
    lowered = text.lower()
    return lowered if lowered.isascii() else unicodedata.normalize("NFKC", lowered)
