"""What a step costs: floating-point operations, counted from the settings alone.

The convention, for every number here. *Model* FLOPs: what the mathematics asks for, not
what a program happens to do. Matrix products alone, a multiply and an add being two;
attention is three products for each pair of query and key (content logits, position
logits, values), causal attention counted in full, not as half; the read-out counts, looking
up embeddings does not. Left out: element-wise work, what a backward pass recomputes, and
the projection of the sinusoids, which is done once a step and not for each sequence.
"""

from retro_jax.config import ModelConfig


def forward_flops(
    cfg: ModelConfig, sequence_len: int, num_neighbours: int, *, retrieval: bool
) -> int:
    """Model FLOPs of one sequence's forward pass, read-out included.

    Args:
        sequence_len: tokens of a sequence (L); neighbours belong to its complete chunks.
        num_neighbours: passages that are read for each chunk (N), all of full length.
        retrieval: False for the decoder alone, as without neighbours.
    """
    flops = cfg.depth * _decoder_layer(cfg, sequence_len)
    num_chunks = sequence_len // cfg.chunk_len
    if retrieval and cfg.cca_layers and num_neighbours:
        flops += len(cfg.cca_layers) * num_chunks * _retrieve(cfg, num_neighbours)
        flops += num_chunks * _encode(cfg, num_neighbours)
    return flops + _product(sequence_len, cfg.width, cfg.vocab_size)


def train_flops(
    cfg: ModelConfig, sequence_len: int, num_neighbours: int, *, retrieval: bool
) -> int:
    """Model FLOPs of one sequence in training: the backward pass is twice the forward."""
    return 3 * forward_flops(cfg, sequence_len, num_neighbours, retrieval=retrieval)


def _product(rows: int, width: int, columns: int) -> int:
    """(rows x width) times (width x columns)."""
    return 2 * rows * width * columns


def _feed_forward(tokens: int, width: int, ffw_width: int) -> int:
    return 2 * _product(tokens, width, ffw_width)


def _decoder_layer(cfg: ModelConfig, tokens: int) -> int:
    inner = cfg.num_heads * cfg.head_size
    projections = 4 * _product(tokens, cfg.width, inner)  # q, k, v, o
    pairs = 3 * _product(tokens, inner, tokens)
    return projections + pairs + _feed_forward(tokens, cfg.width, cfg.ffw_width)


def _retrieve(cfg: ModelConfig, num_neighbours: int) -> int:
    """Chunked cross-attention of one chunk in one layer.

    A key's position logit depends on its place in the neighbour alone, so all neighbours
    share one.
    """
    inner = cfg.num_heads * cfg.head_size
    keys = num_neighbours * cfg.neighbour_len
    queries_and_outputs = 2 * _product(cfg.chunk_len, cfg.width, inner)
    keys_and_values = 2 * _product(keys, cfg.encoder_width, inner)
    content_and_values = 2 * _product(cfg.chunk_len, inner, keys)
    position = _product(cfg.chunk_len, inner, cfg.neighbour_len)
    return queries_and_outputs + keys_and_values + content_and_values + position


def _encode(cfg: ModelConfig, num_neighbours: int) -> int:
    """The encoder over all neighbours of one chunk.

    The chunk's keys and values are the same for all its neighbours: counted once.
    """
    width, inner = cfg.encoder_width, cfg.encoder_heads * cfg.encoder_head_size
    tokens = num_neighbours * cfg.neighbour_len
    own = 4 * _product(tokens, width, inner)
    own += 3 * _product(tokens, inner, cfg.neighbour_len)
    own += _feed_forward(tokens, width, cfg.encoder_ffw_width)
    chunk = 2 * _product(tokens, width, inner)
    chunk += 2 * _product(cfg.chunk_len, cfg.width, inner)
    chunk += 3 * _product(tokens, inner, cfg.chunk_len)
    return cfg.encoder_depth * own + len(cfg.encoder_cca_layers) * chunk
