import pytest

from tests import served_model


@pytest.fixture(scope="package")
def stub():
    """A server of a scripted model without a database; leave its model as it was."""
    with served_model.served() as made:
        yield made
