"""One server of a scripted model for all tests of a file."""

import pytest

from tests import served_model


@pytest.fixture(scope="module")
def stub():
    with served_model.served() as made:
        yield made
