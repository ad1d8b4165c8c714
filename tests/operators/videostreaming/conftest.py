"""The model of these tests."""

import pytest
import videostreaming_streams


@pytest.fixture(scope="session")
def tiny_videostreaming(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a small model with random weights."""
    return videostreaming_streams.tiny(tmp_path_factory.mktemp("videostreaming"))
