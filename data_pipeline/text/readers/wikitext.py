"""WikiText's pages as they are scored for perplexity per word.

Its tokens are parted by spaces (` @-@ `, ` , `). The usual score reads the page as it was
before that, and counts words and bytes of the page as it is.
Source: `wikitext_detokenizer` and `process_results` of EleutherAI's lm-evaluation-harness.
"""

import re

_REPLACED = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
)
_ENCLOSED = (
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
)
_REPLACED_LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenised(page: str) -> str:
    """The page with its words and marks joined as its authors wrote them."""
    for old, new in _REPLACED:
        page = page.replace(old, new)
    for pattern, new in _ENCLOSED:
        page = pattern.sub(new, page)
    for old, new in _REPLACED_LAST:
        page = page.replace(old, new)
    return page


def page_size(page: str) -> tuple[int, int]:
    """Words and UTF-8 bytes of a page, as the usual score counts them.

    White space at its beginning and its end parts off an empty word each.
    """
    return len(re.split(r"\s+", page)), len(page.encode())
