"""The RETRO model and its training. Knows arrays; never text, files of text or indexes.

Every array's name ends in one letter an axis, here and in `data_pipeline`:

    B  sequences of a batch              D  width of the stream that a module reads and
    L  tokens of a sequence                 writes: the decoder's, in the encoder its own
    C  chunks of a sequence              E  width of the other stream, which a cross-
    M  tokens of a chunk                    attention looks at (in self-attention E = D)
    N  neighbours of a chunk             H  heads              K  size of one head
    R  tokens of a neighbour             F  feed-forward width
       (match, then continuation)        V  vocabulary
    S  keys attended to                  P  relative positions (distances)
    Q  queries                           W  embedding width
    T  rows of a table: entries of a     1  an axis of length one
       database, tokens of a whole batch

`hidden_BLD` has the axes B, L, D. A file that needs another meaning says so in one line of
its docstring, `Letters here: ...`, and has no second meaning for the letter. Parameters
follow the same rule (`w_q_DHK`), and their letters are also their partition rule:
`devices/sharding.py` maps letters to mesh axes.

All training state is a flat dict, name -> array (`parameters.py`); `nnx.Module` only describes
the forward pass. A chunk's neighbours are first read by the position that has read all of
the chunk: 0-based position t reads those of chunk (t + 1) // M - 1, none when t < M - 1.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retro_jax.config import ModelConfig, paper_config
    from retro_jax.model import Retro
    from retro_jax.pretrained import from_pretrained

__all__ = ["ModelConfig", "Retro", "__version__", "from_pretrained", "paper_config"]


def __getattr__(name: str) -> Any:
    """Imports what users ask this package for, and no sooner: it takes seconds."""
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("retro-jax")
        except metadata.PackageNotFoundError:  # a clone that was not installed
            return "unknown"
    from importlib import import_module

    places = {
        "ModelConfig": "retro_jax.config",
        "paper_config": "retro_jax.config",
        "Retro": "retro_jax.model",
        "from_pretrained": "retro_jax.pretrained",
    }
    if name not in places:
        raise AttributeError(f"module 'retro_jax' has no attribute {name!r}")
    return getattr(import_module(places[name]), name)
