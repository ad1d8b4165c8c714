"""The model of these tests."""

import pytest
import rekv_streams


@pytest.fixture(scope="session")
def tiny_rekv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a small model with random weights."""
    return rekv_streams.tiny(tmp_path_factory.mktemp("rekv"))
