"""What may depend on what in the whole model, pair by pair and bit for bit.

Bits are compared between two runs of the same program, each variant in the row of the
batch where its original stood.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retro_jax.config import paper_config
from retro_jax.model import Retro, parameters
from tests import reference, tiny_model

CFG = tiny_model.config()
M, R, N, V = CFG.chunk_len, CFG.neighbour_len, 2, CFG.vocab_size
ROWS = 48  # of every batch here: each shape is compiled once
PARAMS = tiny_model.parameters(CFG)


@dataclasses.dataclass
class Inputs:
    """One sequence with the neighbours of its complete chunks."""

    inputs_L: np.ndarray
    neighbours_CNR: np.ndarray
    lengths_CN: np.ndarray
    segments_L: np.ndarray

    def copies(self) -> list["Inputs"]:
        """ROWS of them that can be changed one by one."""
        return [
            Inputs(*(array.copy() for array in dataclasses.astuple(self)))
            for _ in range(ROWS)
        ]


def _inputs(length: int, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    return Inputs(
        rng.integers(0, V, length, np.int32),
        rng.integers(0, V, (length // M, N, R), np.int32),
        np.full((length // M, N), R, np.int32),
        np.ones(length, np.int32),
    )


def _logits(rows: list[Inputs], cfg=CFG, params=PARAMS) -> np.ndarray:
    """Logits of each; the batch is filled up to ROWS with the first."""
    filled = rows + rows[:1] * (ROWS - len(rows))
    columns = zip(*(dataclasses.astuple(row) for row in filled), strict=True)
    batch = tiny_model.forward(cfg)(params, *(np.stack(column) for column in columns))
    return np.asarray(batch)[: len(rows)]


def _off(rows: list[Inputs]) -> np.ndarray:
    """Logits of the same without neighbours."""
    filled = rows + rows[:1] * (ROWS - len(rows))
    inputs_BL = np.stack([row.inputs_L for row in filled])
    segments_BL = np.stack([row.segments_L for row in filled])
    batch = tiny_model.forward(CFG)(PARAMS, inputs_BL, None, None, segments_BL)
    return np.asarray(batch)[: len(rows)]


def _other_token(token: int) -> int:
    return (int(token) + 7) % V


@pytest.mark.parametrize("length", [12, 14])
def test_no_position_depends_on_a_later_input(length):
    base = _inputs(length)
    variants = base.copies()
    for s in range(length):
        variants[s].inputs_L[s] = _other_token(base.inputs_L[s])
    before, after = _logits(base.copies()), _logits(variants)
    changed = (before != after).any(axis=-1)  # variant s, position t
    for s in range(length):
        assert not changed[s, :s].any(), f"input {s} changes earlier logits"
        assert changed[s, s:].all(), f"input {s} does not reach all later logits"


@pytest.mark.parametrize("length", [12, 14])
def test_a_neighbour_is_first_read_by_its_chunks_last_position(length):
    base = _inputs(length)
    places = list(np.ndindex(length // M, N, R))
    assert len(places) <= ROWS
    variants = base.copies()
    for row, place in enumerate(places):
        token = base.neighbours_CNR[place]
        variants[row].neighbours_CNR[place] = _other_token(token)
    before, after = _logits(base.copies()), _logits(variants)
    changed = (before != after).any(axis=-1)
    for row, (chunk, n, r) in enumerate(places):
        first = (chunk + 1) * M - 1
        assert not changed[row, :first].any(), (chunk, n, r)
        assert changed[row, first:].all(), (chunk, n, r)


@pytest.mark.parametrize("length", [12, 14])
def test_the_first_positions_are_those_without_retrieval(length):
    base = _inputs(length)
    on, off = _logits([base])[0], _off([base])[0]
    np.testing.assert_array_equal(on[: M - 1], off[: M - 1])
    assert (on[M - 1 :] != off[M - 1 :]).any(axis=-1).all()


@pytest.mark.parametrize("length", [12, 14])
def test_absent_neighbours_are_retrieval_off_bit_for_bit(length):
    rows = [_inputs(length, seed) for seed in range(5)]
    for row in rows:
        row.lengths_CN[:] = 0
    np.testing.assert_array_equal(_logits(rows), _off(rows))


def test_one_chunk_without_neighbours_reads_nothing():
    base, other = _inputs(12), _inputs(12)
    base.lengths_CN[1] = other.lengths_CN[1] = 0
    other.neighbours_CNR[1] = (other.neighbours_CNR[1] + 3) % V
    got = _logits([base, other])
    np.testing.assert_array_equal(got[0], got[1])
    assert (got[0] != _off([base])[0]).any(axis=-1)[2 * M - 1 : 3 * M - 1].all()


def test_gradients_without_neighbours_are_finite_and_leave_the_encoder_alone():
    cfg = tiny_model.small_config()
    params = tiny_model.parameters(cfg)
    base = _inputs(12)

    def loss(params, lengths_CN):
        logits = parameters.rebuild(cfg, params)(
            jnp.asarray(base.inputs_L)[None],
            jnp.asarray(base.neighbours_CNR)[None],
            lengths_CN[None],
        )
        return jnp.sum(jax.nn.log_softmax(logits)[..., 0])

    gradient = jax.jit(jax.grad(loss))
    with_neighbours = gradient(params, base.lengths_CN)
    without = gradient(params, np.zeros_like(base.lengths_CN))
    for name in params:
        assert np.isfinite(without[name]).all(), name
        assert np.isfinite(with_neighbours[name]).all(), name
        assert (np.asarray(with_neighbours[name]) != 0).any(), name
        if name.startswith("encoder/") or "cross" in name:
            np.testing.assert_array_equal(without[name], 0.0, err_msg=name)


def test_an_absent_neighbour_is_as_if_only_the_others_were_given():
    both, one = _inputs(12), _inputs(12)
    both.lengths_CN[:, 0] = 0
    one.neighbours_CNR = one.neighbours_CNR[:, 1:]
    one.lengths_CN = one.lengths_CN[:, 1:]
    np.testing.assert_allclose(_logits([both]), _logits([one]), atol=1e-5)


def test_what_stands_in_the_padding_of_a_neighbour_never_matters():
    rng = np.random.default_rng(1)
    base = _inputs(12)
    base.lengths_CN = np.array([[0, 3], [7, 1], [R, 5]], np.int32)
    variants = base.copies()
    for variant in variants[1:]:
        garbage = rng.integers(0, V, base.neighbours_CNR.shape, np.int32)
        padded = np.arange(R) >= base.lengths_CN[..., None]
        variant.neighbours_CNR[padded] = garbage[padded]
    np.testing.assert_array_equal(_logits(variants), _logits(base.copies()))


def test_a_shorter_neighbour_equals_a_padded_one():
    padded, short = _inputs(12), _inputs(12)
    padded.lengths_CN[:] = short.lengths_CN[:] = 5
    short.neighbours_CNR = short.neighbours_CNR[..., :5]
    np.testing.assert_allclose(_logits([padded]), _logits([short]), atol=1e-5)


def test_lengths_that_are_not_given_are_full():
    base = _inputs(12)
    got = tiny_model.forward(CFG)(
        PARAMS, base.inputs_L[None], base.neighbours_CNR[None]
    )
    np.testing.assert_allclose(got, _logits([base]), atol=1e-5)


def test_the_order_of_neighbours_does_not_matter():
    base = _inputs(14)
    base.lengths_CN[:] = [[8, 3], [5, 8], [1, 2]]
    permuted = base.copies()[0]
    permuted.neighbours_CNR = permuted.neighbours_CNR[:, ::-1]
    permuted.lengths_CN = permuted.lengths_CN[:, ::-1]
    got = _logits([base, permuted])
    np.testing.assert_allclose(got[0], got[1], atol=1e-5)


def test_neighbours_of_an_incomplete_last_chunk_are_not_looked_at():
    base = _inputs(14)
    more = Inputs(
        base.inputs_L,
        np.concatenate([base.neighbours_CNR, base.neighbours_CNR[:1]]),
        np.concatenate([base.lengths_CN, base.lengths_CN[:1]]),
        base.segments_L,
    )
    np.testing.assert_allclose(_logits([more]), _logits([base]), atol=1e-5)


@pytest.mark.parametrize("given", [1, 2, 4, 5])
def test_another_number_of_chunks_is_refused(given):
    model = parameters.skeleton(CFG)
    neighbours_BCNR = np.zeros((1, given, N, R), np.int32)
    with pytest.raises(ValueError, match=f"neighbours of {given} chunks .* 3 complete"):
        jax.eval_shape(model, np.zeros((1, 12), np.int32), neighbours_BCNR)


def test_a_sequence_shorter_than_a_chunk_reads_nothing():
    inputs_BL = np.array([[3, 1]], np.int32)
    neighbours_BCNR = np.zeros((1, 1, N, R), np.int32)
    run = tiny_model.forward(CFG)
    np.testing.assert_array_equal(
        run(PARAMS, inputs_BL, neighbours_BCNR), run(PARAMS, inputs_BL)
    )


@pytest.mark.parametrize("length", [1, 12, 14])
def test_the_model_equals_the_paper_token_by_token(length):
    base = _inputs(length)
    base.lengths_CN = np.random.default_rng(2).integers(0, R + 1, (length // M, N))
    base.lengths_CN[:1] = [[R, 3]]
    neighbours = (base.neighbours_CNR, base.lengths_CN) if length >= M else ()
    expected = reference.logits(CFG, PARAMS, base.inputs_L, *neighbours)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(_logits([base])[0], expected, atol=2e-5 * scale)


def test_packed_documents_give_what_each_gives_alone():
    """Documents of 1 chunk, 2 chunks less a token, and 1 chunk less three."""
    packed = _inputs(16)
    packed.segments_L[:] = [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0, 3, 0, 0, 0]
    together = _logits([packed])[0]
    for start, stop in ((0, 4), (4, 11), (12, 13)):
        alone = _inputs(16)
        length = stop - start
        alone.inputs_L[:length] = packed.inputs_L[start:stop]
        alone.segments_L = (np.arange(16) < length).astype(np.int32)
        alone.neighbours_CNR = np.roll(packed.neighbours_CNR, -start // M, axis=0)
        got = _logits([alone])[0]
        np.testing.assert_allclose(together[start:stop], got[:length], atol=2e-5)


def test_no_document_depends_on_another_or_on_its_neighbours():
    packed = _inputs(16)
    packed.segments_L[:] = [1, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]
    variants = packed.copies()
    for row in range(8):  # the first document's tokens and padding
        variants[row].inputs_L[row] = _other_token(packed.inputs_L[row])
    for row, (chunk, n) in enumerate(np.ndindex(2, N), 8):
        variants[row].neighbours_CNR[chunk, n] += 1
        variants[row].neighbours_CNR[chunk, n] %= V
    changed = (_logits(packed.copies()) != _logits(variants)).any(axis=-1)
    assert not changed[:, 8:].any()
    for row in range(6):
        assert changed[row, row:6].all() and not changed[row, :row].any()
    for row in (6, 7):  # padding reaches no text
        assert not changed[row, :6].any()
    assert changed[8:10, 3:6].all() and not changed[8:10, :3].any()
    assert not changed[10:12, :6].any()  # read by padding alone


@pytest.mark.parametrize("padding", [4, 8])
def test_left_padding_by_whole_chunks_changes_nothing(padding):
    plain, padded = _inputs(16), _inputs(16)
    real = 16 - padding
    padded.segments_L[:padding] = 0
    padded.inputs_L[padding:] = plain.inputs_L[:real]
    padded.neighbours_CNR[padding // M :] = plain.neighbours_CNR[: real // M]
    got = _logits([plain, padded])
    np.testing.assert_allclose(got[0, :real], got[1, padding:], atol=2e-5)


def test_left_padding_inside_a_chunk_never_matters():
    base = _inputs(12)
    base.segments_L[:3] = 0
    variants = base.copies()
    for row in range(3):
        variants[row].inputs_L[row] = _other_token(base.inputs_L[row])
    got = _logits(variants)[:, 3:]
    np.testing.assert_array_equal(got, _logits(base.copies())[:, 3:])
    other = base.copies()[0]
    other.neighbours_CNR[0] = (other.neighbours_CNR[0] + 1) % V
    assert (_logits([other])[0, 3] != _logits([base])[0, 3]).any()


def test_without_cca_layers_it_is_the_baseline():
    baseline_cfg = tiny_model.config(cca_layers=())
    names = tiny_model.shapes(baseline_cfg)
    assert set(names) < set(PARAMS)
    assert not [name for name in names if "cross" in name or "encoder" in name]
    baseline = {name: PARAMS[name] for name in names}
    base = _inputs(12)
    expected = _off([base])
    np.testing.assert_array_equal(_logits([base], baseline_cfg, baseline), expected)


def test_sharing_embeddings_and_a_read_out_of_its_own():
    cfg = tiny_model.config(
        share_embeddings=True, encoder_width=16, tie_output=False, remat="none"
    )
    params = tiny_model.parameters(cfg)
    assert "encoder/embedding_VE" not in params
    base = _inputs(12)
    before = _logits([base], cfg, params)
    zero = params | {"w_read_VD": jnp.zeros_like(params["w_read_VD"])}
    np.testing.assert_array_equal(_logits([base], cfg, zero), 0.0)
    unseen = next(token for token in range(V) if token not in base.inputs_L)
    assert unseen in base.neighbours_CNR
    table_VD = params["embedding_VD"].at[unseen].multiply(-2.0)
    after = _logits([base], cfg, params | {"embedding_VD": table_VD})
    assert (before != after).any()


def test_bfloat16_is_close_to_float32():
    cfg = tiny_model.config(dtype="bfloat16")
    base = _inputs(12)
    exact, rounded = _logits([base]), _logits([base], cfg)
    assert rounded.dtype == np.float32
    error = np.abs(exact - rounded).max() / exact.std()
    assert 0 < error < 0.15


def test_the_encoder_is_told_which_chunk_asks():
    """Through its cross-attention, on which the readers and only they depend."""
    base = _inputs(12)
    before = _logits([base])[0]
    name = "encoder/layers/1/cross/w_o_HKD"
    silent = PARAMS | {name: jnp.zeros_like(PARAMS[name])}
    after = _logits([base], params=silent)[0]
    np.testing.assert_array_equal(before[: M - 1], after[: M - 1])
    assert (before[M - 1 :] != after[M - 1 :]).any(axis=-1).all()


@pytest.mark.parametrize(
    "size, retro_millions, baseline_millions",
    [
        ("172m", 172, 132),
        ("425m", 425, 368),
        ("1.5b", 1451, 1309),
        ("7.5b", 7532, 6982),
    ],
)
def test_parameter_counts_of_table_2(size, retro_millions, baseline_millions):
    cfg = paper_config(size)
    baseline = dataclasses.replace(cfg, cca_layers=())
    for built, millions in ((cfg, retro_millions), (baseline, baseline_millions)):
        count = parameters.num_parameters(
            parameters.named(parameters.skeleton(built)), embeddings=False
        )
        assert count / 1e6 == pytest.approx(millions, rel=0.005)


def _is_of_retrieval_alone(name: str) -> bool:
    return name.startswith("encoder/") or "cross" in name


def test_the_baseline_lacks_what_retrieval_alone_needs():
    cfg = paper_config("172m")
    baseline = tiny_model.shapes(dataclasses.replace(cfg, cca_layers=()))
    expected = {
        name: shape
        for name, shape in tiny_model.shapes(cfg).items()
        if not _is_of_retrieval_alone(name)
    }
    assert baseline == expected


def test_an_inconsistent_config_is_refused():
    cfg = tiny_model.config(cca_layers=(4,))
    with pytest.raises(ValueError, match="cca_layers"):
        Retro(cfg, rngs=nnx.Rngs(0))
