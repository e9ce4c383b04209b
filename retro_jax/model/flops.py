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
    flops = cfg.depth * _decoder_layer_flops(cfg, sequence_len)
    num_chunks = sequence_len // cfg.chunk_len
    if retrieval and cfg.cca_layers and num_neighbours:
        flops += len(cfg.cca_layers) * num_chunks * _cca_flops(cfg, num_neighbours)
        flops += num_chunks * _encoder_flops(cfg, num_neighbours)
    return flops + _product_flops(sequence_len, cfg.width, cfg.vocab_size)


def train_flops(
    cfg: ModelConfig,
    sequence_len: int,
    num_neighbours: int,
    *,
    retrieval: bool,
    frozen: bool = False,
) -> int:
    """Model FLOPs of one sequence in training: the backward pass is twice the forward.

    Args:
        frozen: the backbone is not trained. Then there is no backward pass below the first
            CCA, and above it none to the backbone's parameters.
    """
    forward = forward_flops(cfg, sequence_len, num_neighbours, retrieval=retrieval)
    if not frozen:
        return 3 * forward
    if not (retrieval and cfg.cca_layers and num_neighbours):
        return forward
    return forward + _frozen_backward_flops(cfg, sequence_len, num_neighbours)


def _frozen_backward_flops(
    cfg: ModelConfig, sequence_len: int, num_neighbours: int
) -> int:
    """The backward pass of a sequence where the encoder and CCA alone are trained."""
    ffw = _ffw_flops(cfg, sequence_len, cfg.width, cfg.ffw_width)
    pairs = _pair_flops(cfg, sequence_len)
    products = _decoder_layer_flops(cfg, sequence_len) - pairs
    # To both sides of each product of queries, keys and values; but positions are no side.
    layer = products + (pairs * 5 // 3 if cfg.positions == "relative" else 2 * pairs)
    above = cfg.depth - min(cfg.cca_layers)
    # A layer's CCA stands between its self-attention and its feed-forward.
    flops = above * layer + ffw
    flops += _product_flops(sequence_len, cfg.width, cfg.vocab_size)
    num_chunks = sequence_len // cfg.chunk_len
    cca, encoder = _cca_flops(cfg, num_neighbours), _encoder_flops(cfg, num_neighbours)
    reading = 2 * len(cfg.cca_layers) * cca
    if cfg.encoder == "decoder":  # the source of keys and values is not trained
        keys = num_neighbours * _read_len(cfg)
        to_source = 2 * _product_flops(keys, cfg.source_width, _key_width(cfg))
        reading -= len(cfg.cca_layers) * to_source
    else:
        reading += 2 * encoder
    return flops + num_chunks * reading


def reading_flops(cfg: ModelConfig, num_neighbours: int, *, kept: bool) -> int:
    """Model FLOPs that the neighbours of one chunk cost in CCA.

    Args:
        kept: whether what they are encoded as was kept from before.
    """
    flops = len(cfg.cca_layers) * _cca_flops(cfg, num_neighbours)
    return flops if kept else flops + _encoder_flops(cfg, num_neighbours)


def prompt_flops(cfg: ModelConfig, num_neighbours: int) -> int:
    """Model FLOPs that the neighbours of one chunk cost in front of the text.

    All layers read them, and the chunk looks at them in all. The text between them and the
    chunk, which has to be read again behind other passages, is not counted.
    """
    first, end = cfg.neighbour_span
    tokens = num_neighbours * (end - first)
    inner = cfg.num_heads * cfg.head_size
    looks = 2 * _product_flops(cfg.chunk_len, inner, tokens)
    return cfg.depth * (_decoder_layer_flops(cfg, tokens) + looks)


def attention_flops(cfg: ModelConfig, sequence_len: int) -> int:
    """The part of `forward_flops` that a fused kernel does: the decoder's query-key pairs."""
    return cfg.depth * _pair_flops(cfg, sequence_len)


def _product_flops(rows: int, width: int, columns: int) -> int:
    """The FLOPs of (rows x width) times (width x columns)."""
    return 2 * rows * width * columns


def _ffw_flops(cfg: ModelConfig, tokens: int, width: int, ffw_width: int) -> int:
    return (3 if cfg.gated_ffw else 2) * _product_flops(tokens, width, ffw_width)


def _decoder_layer_flops(cfg: ModelConfig, tokens: int) -> int:
    inner = cfg.num_heads * cfg.head_size
    projections = 2 * _product_flops(tokens, cfg.width, inner)  # q, o
    projections += 2 * _product_flops(tokens, cfg.width, _key_width(cfg))
    ffw = _ffw_flops(cfg, tokens, cfg.width, cfg.ffw_width)
    return projections + _pair_flops(cfg, tokens) + ffw


def _pair_flops(cfg: ModelConfig, tokens: int) -> int:
    """The FLOPs of logits and values of every query and key of a decoder layer."""
    products = 3 if cfg.positions == "relative" else 2
    return products * _product_flops(tokens, cfg.num_heads * cfg.head_size, tokens)


def _key_width(cfg: ModelConfig) -> int:
    """The width of the decoder's keys, and of its values: fewer heads if several share one."""
    return (cfg.num_key_heads or cfg.num_heads) * cfg.head_size


def _num_position_products(cfg: ModelConfig) -> int:
    """The products a cross-attention needs for its position logits: 1, or 0 without them."""
    return int(cfg.positions == "relative" and cfg.cca_positions)


def _cca_flops(cfg: ModelConfig, num_neighbours: int) -> int:
    """The FLOPs of chunked cross-attention of one chunk in one layer.

    A key's position logit depends on its place in the neighbour alone, so all neighbours
    share one.
    """
    inner, span = cfg.num_heads * cfg.head_size, _read_len(cfg)
    keys = num_neighbours * span
    queries_and_outputs = 2 * _product_flops(cfg.chunk_len, cfg.width, inner)
    keys_and_values = 2 * _product_flops(keys, cfg.source_width, _key_width(cfg))
    content_and_values = 2 * _product_flops(cfg.chunk_len, inner, keys)
    position = _num_position_products(cfg) * _product_flops(cfg.chunk_len, inner, span)
    return queries_and_outputs + keys_and_values + content_and_values + position


def _read_len(cfg: ModelConfig) -> int:
    """The number of tokens of a neighbour that are read, what opens it included."""
    first, end = cfg.neighbour_span
    return end - first + (cfg.num_openers if cfg.encoder == "decoder" else 0)


def _encoder_flops(cfg: ModelConfig, num_neighbours: int) -> int:
    """The FLOPs of the encoder over all neighbours of one chunk.

    The chunk's keys and values are the same for all its neighbours: counted once. Where
    the decoder reads neighbours, they go through its layers below the last with CCA.
    """
    if cfg.encoder == "decoder":
        layers = max(cfg.cca_layers) - 1
        return num_neighbours * layers * _decoder_layer_flops(cfg, _read_len(cfg))
    width, inner = cfg.encoder_width, cfg.encoder_heads * cfg.encoder_head_size
    tokens = num_neighbours * _read_len(cfg)
    pairs = 3 if cfg.positions == "relative" else 2
    # Queries, keys, values and outputs; then a gated or plain feed-forward.
    own = 4 * _product_flops(tokens, width, inner)
    own += pairs * _product_flops(tokens, inner, _read_len(cfg))
    own += _ffw_flops(cfg, tokens, width, cfg.encoder_ffw_width)
    # Queries and outputs of each neighbour, but keys and values of the chunk alone.
    chunk = 2 * _product_flops(tokens, width, inner)
    chunk += 2 * _product_flops(cfg.chunk_len, cfg.width, inner)
    chunk += (2 + _num_position_products(cfg)) * _product_flops(
        tokens, inner, cfg.chunk_len
    )
    return cfg.encoder_depth * own + len(cfg.encoder_cca_layers) * chunk
