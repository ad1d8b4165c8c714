"""Settings of the network: what is refused, and the way to JSON and back."""

import dataclasses

import pytest

from connectors.errors import ConfigError
from models.mamba.config import MambaConfig


def small_config(**changes) -> MambaConfig:
    return MambaConfig(**({"channels": (8, 16, 16, 32, 32), "fc_channels": 32, "heads": 4} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vgg"}, "'vgg' is not known"),
        ({"heads": 5}, "heads=5 must divide fc_channels=32"),
        ({"channels": (8, 16, 16)}, "five numbers"),
        ({"channels": (8, 16, 16, 30, 32)}, "multiples of 4"),
        ({"blocks": (1, 0, 1, 1)}, "above 0"),
        ({"classes": ("a", "a")}, "different names"),
        ({"pixel_position": "head"}, "use 'backbone' or 'neck'"),
        ({"pixel_level": True, "pixel_heads": 7}, "pixel_heads=7 must divide"),
    ],
)
def test_impossible_settings_are_refused_with_the_value_and_a_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**changes)


def test_config_survives_json_and_unknown_names_are_refused():
    config = small_config(pixel_level=True)
    assert MambaConfig.from_json(config.to_json()) == config
    assert config.to_json() == dataclasses.asdict(config)
    with pytest.raises(ConfigError, match="did you mean 'neck_channels'"):
        MambaConfig.from_json({"neck_channel": 3})
