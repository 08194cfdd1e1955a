"""What the tests of pretrained pairs share."""

import pytest
from helpers.pairs import save_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return the files of three photos of several shapes."""
    return save_photos(tmp_path_factory.mktemp("photos"))
