import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.model import positions
from tests import reference


def test_sinusoids_are_sines_then_cosines_of_the_distance():
    distances = [-64, -1, 0, 1, 7, 126]
    got = positions.sinusoids(jnp.array(distances, jnp.float32), 12)
    expected = np.stack([reference.sinusoid(distance, 12) for distance in distances])
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_distance_zero_is_zeros_and_ones():
    got = positions.sinusoids(jnp.zeros(1), 6)[0]
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 1, 1])


def test_relative_distances_fall_from_the_largest():
    got = positions.relative_distances(3, 4, 10)
    np.testing.assert_array_equal(got, [12, 11, 10, 9, 8, 7])


def test_the_ranges_of_the_paper():
    """Fact: CCA -64..126, encoder cross-attention -63..127, at m = 64."""
    cca = positions.relative_distances(64, 128, 63)
    assert (cca.min(), cca.max(), len(cca)) == (-64, 126, 191)
    encoder = positions.relative_distances(128, 64, 0)
    assert (encoder.min(), encoder.max(), len(encoder)) == (-63, 127, 191)


@settings(max_examples=25)
@given(
    num_queries=st.integers(1, 4),
    num_keys=st.integers(1, 4),
    causal=st.booleans(),
    seed=st.integers(0, 9),
)
def test_align_distances_equals_a_gather(num_queries, num_keys, causal, seed):
    num_given = num_keys if causal else num_queries + num_keys - 1
    rng = np.random.default_rng(seed)
    given_BHLP = rng.standard_normal((2, 1, num_queries, num_given)).astype(np.float32)
    expected = np.full((2, 1, num_queries, num_keys), np.nan, np.float32)
    for i in range(num_queries):
        for s in range(num_keys):
            place = s + num_queries - 1 - i
            if place < num_given:
                expected[:, :, i, s] = given_BHLP[:, :, i, place]
    got = np.array(positions.align_distances(jnp.asarray(given_BHLP), num_keys))
    assert np.isfinite(got).all()
    got[np.isnan(expected)] = np.nan  # the future, which has no distance
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("num_queries, num_keys", [(1, 1), (1, 5), (4, 8), (8, 4)])
def test_aligned_distances_are_query_minus_key(num_queries, num_keys):
    distances_P = positions.relative_distances(num_queries, num_keys, 3)
    logits = jnp.broadcast_to(distances_P, (1, 1, num_queries, len(distances_P)))
    got = positions.align_distances(logits, num_keys)[0, 0]
    expected = np.arange(num_queries)[:, None] - np.arange(num_keys) + 3
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("offset", [0, 3, -5])
def test_features_of_two_places_give_the_sinusoid_of_their_distance(offset):
    rng = np.random.default_rng(0)
    along_BLHD = rng.standard_normal((2, 5, 3, 8)).astype(np.float32)
    query_BLHD, key_SD = positions.as_features(jnp.asarray(along_BLHD), 7, offset)
    found = np.einsum("blhd,sd->blhs", query_BLHD, key_SD)
    for place, key in np.ndindex(5, 7):
        distance = jnp.asarray([place - key + offset], jnp.float32)
        expected = along_BLHD[:, place] @ positions.sinusoids(distance, 8)[0]
        np.testing.assert_allclose(found[:, place, :, key], expected, atol=1e-5)


def test_rotated_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    query_LHK, key_LHK = jnp.asarray(rng.standard_normal((2, 1, 3, 8)), jnp.float32)

    def product(place, other_place):
        turned = (
            positions.rotate(query_LHK, place),
            positions.rotate(key_LHK, other_place),
        )
        return np.sum(turned[0] * turned[1], axis=-1)

    np.testing.assert_allclose(product(9, 4), product(105, 100), atol=1e-4)
    np.testing.assert_allclose(
        product(0, 0), np.sum(query_LHK * key_LHK, axis=-1), atol=1e-6
    )
    assert not np.allclose(product(9, 4), product(9, 5), atol=1e-2)
