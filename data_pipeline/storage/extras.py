"""What to install where an optional library is missing, by a command that works from anywhere."""

import importlib.metadata
import json
import shlex
import sys
from pathlib import Path

_PROJECT = "retro-jax"
# The extra of setup.cfg that brings a library, by the name that is imported.
EXTRAS = {
    "bm25s": "hybrid",
    "datasets": "hf",
    "datasketch": "data",
    "faiss": "faiss",
    "fastapi": "server",
    "google": "serve",
    "fsspec": "storage",
    "gcsfs": "storage",
    "grpc": "serve",
    "grpc_health": "serve",
    "grpc_reflection": "serve",
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "report",
    "mcp": "mcp",
    "prometheus_client": "serve",
    "pyarrow": "data",
    "ray": "ray",
    "s3fs": "storage",
    "safetensors": "data",
    "scann": "data",
    "sentence_transformers": "torch",
    "sentencepiece": "data",
    "tensorflow": "data",
    "tensorflow_datasets": "data",
    "tokenizers": "data",
    "starlette": "server",
    "torch": "torch",
    "uvicorn": "server",
    "zstandard": "data",
}


def install_command(extra: str) -> str:
    """The command that adds an extra: from this clone, or from where this was installed.

    Never by the project's name alone, which on a package index may be somebody else's.
    """
    root = Path(__file__).parents[2]
    if (root / "setup.cfg").exists():
        wanted = ["-e", f"{root}[{extra}]"]
    else:
        wanted = [f"{_PROJECT}[{extra}] @ {_origin()}"]
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def explained(error: Exception) -> str:
    """An error's text; for a library that is missing, also how it is installed."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    extra = EXTRAS.get((missing or "").partition(".")[0])
    if extra is None or "pip install" in str(error):
        return str(error)
    return f"{error}: {install_command(extra)}"


def _origin() -> str:
    """Where pip says that it has installed this from."""
    try:
        told = importlib.metadata.distribution(_PROJECT).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        told = None
    origin = json.loads(told or "{}")
    versioned = origin.get("vcs_info", {}).get("vcs")
    url = origin.get("url", "file:///PATH/OF/THE/CLONE")
    return f"{versioned}+{url}" if versioned else url
