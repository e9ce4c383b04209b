"""Reading a pretrained decoder: its settings alone, or all of its weights as parameters."""

import dataclasses
import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.pretrained import gguf_file, huggingface_folder
from retro_jax.pretrained.description import DECODER_FIELDS, Description
from retro_jax.pretrained.stored_tensors import StoredTensor, read_into
from retro_jax.pretrained.tensor_names import Place, places

# What old checkpoints carry though it follows from their settings.
_LEFT_OUT = ("rotary_emb.inv_freq", "rope_freqs.weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pretrained decoder with its weights."""

    model: ModelConfig  # without CCA; no bos_id
    params: dict[str, np.ndarray]  # named as `parameters.named` does
    architecture: str  # as transformers names it
    trained_len: int  # longest sequence, in tokens, it was trained on
    bos_id: int | None  # begins a text, as its settings say
    eos_id: int | None  # ends a text; the first, if there are several
    fingerprint: str  # of all that was read, wherever it lay and in whichever files


@dataclasses.dataclass(frozen=True)
class Source:
    """A decoder before its weights are read: what it is and where its tensors lie."""

    path: Path
    description: Description
    tensors: dict[str, tuple[Place, StoredTensor]]  # by our names

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file and not a folder."""
        return self.path.is_file()


def config_of(path: str | Path) -> Description:
    """What a folder or a GGUF file says of its decoder; no weight is read.

    Raises:
        ValueError: in one line, for what is damaged or can't be expressed by our model.
        OSError: if it can't be opened.
    """
    path = Path(path)
    if path.is_dir():
        return huggingface_folder.describe(path)
    return gguf_file.describe(path, *gguf_file.read(_gguf(path)))


def load(path: str | Path, *, dtype: str = "float32") -> Pretrained:
    """Reads a decoder from a Hugging Face folder or a GGUF file.

    Tensors are read by blocks of rows, straight into their parameters, so that memory
    stays little above the parameters themselves.

    Args:
        path: the folder, or the file.
        dtype: of the parameters, float32 or bfloat16.
    Raises:
        ValueError: in one line, for what is damaged or can't be expressed by our model.
        OSError: if it can't be opened.
    """
    source = find(path)
    digest = hashlib.sha256(repr(_identity(source.description)).encode())
    params = {}
    for name, (place, stored) in source.tensors.items():
        tensor_digest = hashlib.sha256()
        params[name] = read(source, place, stored, dtype, tensor_digest.update)
        digest.update(f"{name} {stored.form} {tensor_digest.hexdigest()}\n".encode())
    description = source.description
    return Pretrained(
        model=description.model,
        params=params,
        architecture=description.architecture,
        trained_len=description.trained_len,
        bos_id=description.bos_id,
        eos_id=description.eos_id,
        fingerprint=digest.hexdigest(),
    )


def fingerprint_of(path: str | Path) -> str:
    """The fingerprint that `load` gives, by reading all bytes and keeping none."""
    source = find(path)
    digest = hashlib.sha256(repr(_identity(source.description)).encode())
    for name, (_, stored) in source.tensors.items():
        digest.update(f"{name} {stored.form} {_bytes_digest(stored)}\n".encode())
    return digest.hexdigest()


def _identity(description: Description) -> list[tuple[str, object]]:
    """What of the settings changes the decoder."""
    model = description.model
    return [
        ("architecture", description.architecture),
        *((name, getattr(model, name)) for name in DECODER_FIELDS),
    ]


def _bytes_digest(stored: StoredTensor) -> str:
    digest = hashlib.sha256()
    for _, block in stored.blocks():
        digest.update(block.data)
    return digest.hexdigest()


def find(path: str | Path) -> Source:
    """Looks at settings and headers: every tensor is there, of the right shape, no other.

    Raises:
        ValueError: in one line, for what is damaged or can't be expressed by our model.
        OSError: if it can't be opened.
    """
    path = Path(path)
    if path.is_dir():
        description = huggingface_folder.describe(path)
        stored = huggingface_folder.stored(path)
        read_out, table = "lm_head.weight", "model.embed_tokens.weight"
    else:
        metadata, stored = gguf_file.read(_gguf(path))
        description = gguf_file.describe(path, metadata, stored)
        read_out, table = "output.weight", "token_embd.weight"
    expected = {
        place.huggingface if path.is_dir() else place.gguf: place
        for place in places(description.model, description.vocab_rows)
    }
    stored = {
        name: tensor for name, tensor in stored.items() if not name.endswith(_LEFT_OUT)
    }
    if read_out in stored and read_out not in expected:
        _check_tie(path, stored, read_out, table)
    for name in sorted(expected.keys() ^ stored.keys()):
        if name in expected:
            raise ValueError(f"{path} lacks tensor {name}")
        raise ValueError(f"{path} has a tensor {name:.80}, which our model has not")
    for name, place in expected.items():
        if stored[name].shape != place.stored_shape:
            raise ValueError(
                f"{path}: tensor {name} has shape {stored[name].shape}, settings say "
                f"{place.stored_shape}"
            )
    tensors = {place.ours: (place, stored[name]) for name, place in expected.items()}
    return Source(path, description, tensors)


def _check_tie(path: Path, stored: dict[str, StoredTensor], read_out, table) -> None:
    """Lets a read-out pass, and leaves it out, which is the embedding once more."""
    copy, kept = stored.pop(read_out), stored.get(table)
    if kept is not None and (copy.form, copy.shape, _bytes_digest(copy)) == (
        kept.form,
        kept.shape,
        _bytes_digest(kept),
    ):
        return
    raise ValueError(
        f"{path}: tie_word_embeddings is true, and yet {read_out} differs from {table}"
    )


def read(
    source: Source, place: Place, stored: StoredTensor, dtype: str, update=None
) -> np.ndarray:
    """One parameter, in our shape.

    Raises:
        ValueError: naming the tensor, for numbers that are not finite or a file cut since.
    """
    model = source.description.model
    rows, columns = stored.num_rows, stored.shape[-1]
    if place.ours.endswith("_VD"):
        kept = np.empty(place.shape, jnp.dtype(dtype))
        kept[rows:] = 0
    else:
        shape = (columns, rows) if place.is_transposed else (rows, columns)
        kept = np.empty(shape, jnp.dtype(dtype))
    try:
        read_into(
            kept,
            stored,
            transposed=place.is_transposed,
            places=_unpermuted(model, place) if source.is_gguf else None,
            update=update,
        )
    except ValueError as error:
        name = place.gguf if source.is_gguf else place.huggingface
        raise ValueError(f"{source.path}: tensor {name}: {error}") from error
    return kept.reshape(place.shape)


def _unpermuted(model: ModelConfig, place: Place) -> np.ndarray | None:
    """Where rows of a GGUF file's queries and keys belong, if it is a Llama's.

    There the two features that turn together are neighbours; here, and in Hugging Face's
    folders, one is half a head behind the other.
    """
    is_turned = place.ours.endswith(("attention/w_q_DHK", "attention/w_k_EHK"))
    if not is_turned or model.qkv_biases or model.qk_norms:
        return None
    heads, size = place.shape[1:]
    rows = np.arange(heads * size).reshape(heads, 2, size // 2)
    return rows.transpose(0, 2, 1).reshape(-1)


def _gguf(path: Path) -> Path:
    """A path that may be a GGUF file.

    Raises:
        ValueError: saying what to give, if it is another kind of weights.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: give a Hugging Face folder or a GGUF file"
        )
    if path.suffix in huggingface_folder.PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run any code and is never loaded: give "
            "safetensors or GGUF"
        )
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is weights alone: give its folder, with config.json")
    if not path.is_file():
        raise ValueError(f"{path} is neither a folder nor a GGUF file")
    return path
