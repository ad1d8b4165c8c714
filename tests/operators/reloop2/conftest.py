"""One small model for all tests of this folder."""

from __future__ import annotations

import pytest
from reloop2_streams import save_model


@pytest.fixture(scope="session")
def ctr_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a checkpoint."""
    return save_model(tmp_path_factory.mktemp("ctr") / "model.safetensors")


@pytest.fixture(scope="session")
def other_ctr_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a checkpoint with other weights, equal in shape."""
    return save_model(tmp_path_factory.mktemp("ctr") / "other.safetensors", seed=1)
