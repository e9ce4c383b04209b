"""The page's files, which are sent as they lie here, and what browsers must keep to there.

The page runs scripts of this server alone and asks nobody else; text never becomes HTML.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def files() -> dict[str, tuple[str, bytes]]:
    """The media type and the content of each file by its path; the page itself is at /."""
    found = {}
    for file in sorted(_FOLDER.glob("*")):
        if file.suffix in _MEDIA_TYPES:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = _MEDIA_TYPES[file.suffix], file.read_bytes()
    return found
