"""Text in the encodings that people have; what would be read wrongly is refused."""

import struct

import pytest

from data_pipeline.text.readers.encodings import decode, utf8_chunks, without_surrogates

TEXT = "Grüße an 東京 \U0001f600, and more in plain letters than in others."


@pytest.mark.parametrize("split", [1, 7, 1000])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
    ],
)
def test_marked_text(mark: bytes, encoding: str, split: int) -> None:
    data = mark + TEXT.encode(encoding)
    first = max(split, 4)
    assert b"".join(utf8_chunks([data[:first], data[first:]])).decode() == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(encoding: str) -> None:
    assert b"".join(utf8_chunks([TEXT.encode(encoding)])).decode() == TEXT


def test_numbers_are_no_utf_16() -> None:
    for data in (struct.pack("<99h", *range(99)), b"a\0b", b"\0" * 99, b""):
        assert b"".join(utf8_chunks([data])) == data


@pytest.mark.parametrize("data", [b"\xff\xfe\xff", b"\xff\xfe\x00\xd8", b"\xfe\xffa"])
def test_broken_utf_16(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        list(utf8_chunks([data]))


@pytest.mark.parametrize(
    "text",
    [
        "café",
        "Les élèves étudient à l’école près du théâtre… déjà 5 €.",
        "Die Straße führt über die Brücke; „schöne Grüße“ – sagt sie.",
        "¿Qué pasa en el año 1999? «Nada»; ½ taza.",
        "# Prüft, ob x größer ist\r\nx = 1\r\n",
    ],
)
def test_western_text(text: str) -> None:
    assert decode(text.encode("cp1252")) == text
    assert decode(text.encode()) == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Съешь же ещё этих мягких французских булок", "cp1251"),
        ("Съешь же ещё этих мягких французских булок", "koi8-r"),
        ("Zażółć gęślą jaźń, mówił i poszedł do domu", "cp1250"),
        ("吾輩は猫である。名前はまだ無い。", "shift_jis"),
        ("今天天气怎么样，我们去公园散步吧。", "gb18030"),
        ("안녕하세요 hello world", "euc-kr"),
        ("Καλημέρα σας", "iso8859-7"),
        ("\x01\x02 control café", "latin-1"),
    ],
)
def test_other_text_is_refused(text: str, encoding: str) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode(text.encode(encoding))


def test_surrogates() -> None:
    assert without_surrogates("plain") == "plain"
    assert without_surrogates("a\ud800b\ud83e\udd23") == "a\ufffdb\U0001f923"
