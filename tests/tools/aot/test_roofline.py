"""Bounds of slices: their shapes, their links and the times of a step."""

import pytest

from tools.aot import roofline
from tools.aot.hlo import Collective


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "v5e:4x4x4", "v5p:4x4", "v4:4x0x4"])
def test_shapes_that_a_network_can_not_have_are_refused(name):
    with pytest.raises(ValueError, match="no topology"):
        roofline.parse_slice(name)


def test_a_group_uses_the_links_of_the_axes_it_lies_along():
    cube, flat = roofline.parse_slice("v5p:4x4x4"), roofline.parse_slice("v5e:16x16")
    of_cube = {size: cube.ici_bytes_per_s(size) / 1e9 for size in (4, 16, 64)}
    assert of_cube == {4: 200, 16: 400, 64: 600}
    assert {size: flat.ici_bytes_per_s(size) / 1e9 for size in (4, 16, 64, 256)} == {
        4: 100,
        16: 100,
        64: 200,
        256: 200,
    }


def test_the_step_takes_the_longest_of_three_or_their_sum():
    where = roofline.parse_slice("v5e:4x4")
    sent = [Collective("all-reduce", 2, 16, 10 * 10**9)]
    bounds = roofline.times(where, 197e12, 2 * 819e9, sent)
    assert (bounds.compute_s, bounds.hbm_s) == (1, 2)
    assert bounds.ici_s == pytest.approx(2 * 2 * 10 * 15 / 16 / 200)
    assert bounds.longest_s == 2 and bounds.limit == "HBM"
    assert bounds.sum_s == pytest.approx(3 + bounds.ici_s)
