"""Shapes and settings of the click-through-rate networks: one frozen dataclass per network.

Defaults are those of the published AmazonElectronics runs (BARS; FuxiCTR 2.3). The features come from the
``FeatureMap``; what depends on a stream (memory, labels) belongs to the operator's options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from connectors.errors import ConfigError, nearest

__all__ = ["NETWORKS", "CtrConfig", "DCNv2Config", "DINConfig", "DeepFMConfig", "FiBiNETConfig", "SDIMConfig", "from_fuxictr"]

_ACTIVATIONS = ("relu", "sigmoid", "tanh", "dice")


@dataclass(frozen=True, kw_only=True)
class CtrConfig:
    """What all networks have: embeddings and one MLP. JSON-able by ``to_json``."""

    network: ClassVar[str]

    embedding_dim: int = 64
    hidden_units: tuple[int, ...] = (1024, 512, 256)
    activation: str = "relu"
    batch_norm: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check what the network is built from. Raises ``ConfigError``."""
        self._positive("embedding_dim", self.embedding_dim)
        self._units("hidden_units", self.hidden_units)
        self._choice("activation", self.activation, _ACTIVATIONS)
        self._rate("dropout", self.dropout)

    def to_json(self) -> dict[str, Any]:
        """Return the network's name and settings as JSON values."""
        return {"network": self.network, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> CtrConfig:
        """Build the config of ``values["network"]``; lists become tuples. Raises ``ConfigError`` for what is not known."""
        name = values.get("network")
        if name not in NETWORKS:
            raise ConfigError(f"network {name!r} is not known{nearest(str(name), NETWORKS)}; there are {sorted(NETWORKS)}")
        cls = NETWORKS[name]
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: _tuples(value) for key, value in values.items() if key != "network"}
        for key in given:
            if key not in known:
                raise ConfigError(f"network {name!r} has no setting {key!r}{nearest(key, known)}; it has {sorted(known)}")
        try:
            return cls(**given)
        except TypeError as error:  # a text where a number is compared
            raise ConfigError(f"a setting of network {name!r} has the wrong type: {given} ({error})") from error

    def _positive(self, name: str, value: int) -> None:
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be 1 or more")

    def _units(self, name: str, units: tuple[int, ...]) -> None:
        if not units or min(units) < 1:
            raise ConfigError(f"{name} must be layer widths above 0, at least one, got {list(units)}")

    def _choice(self, name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not known{nearest(value, allowed)}; use one of {list(allowed)}")

    def _rate(self, name: str, value: float) -> None:
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class DCNv2Config(CtrConfig):
    """DCN-V2 (Wang et al., WWW 2021) with full-rank cross layers."""

    network: ClassVar[str] = "dcnv2"

    structure: str = "parallel"  # parallel: MLP beside the cross layers; stacked: MLP on top of them
    cross_layers: int = 3

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        super().__post_init__()
        self._choice("structure", self.structure, ("parallel", "stacked"))
        self._positive("cross_layers", self.cross_layers)


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig(CtrConfig):
    """DeepFM (Guo et al., IJCAI 2017)."""

    network: ClassVar[str] = "deepfm"


@dataclass(frozen=True, kw_only=True)
class DINConfig(CtrConfig):
    """Deep Interest Network (Zhou et al., KDD 2018).

    ``target_fields[i]`` attends over ``sequence_fields[i]``: groups of features whose embeddings are concatenated.
    """

    network: ClassVar[str] = "din"

    activation: str = "dice"
    target_fields: tuple[tuple[str, ...], ...] = (("item_id", "cate_id"),)
    sequence_fields: tuple[tuple[str, ...], ...] = (("item_history", "cate_history"),)
    attention_units: tuple[int, ...] = (512, 256)
    attention_activation: str = "dice"
    attention_dropout: float = 0.1
    softmax: bool = True

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        super().__post_init__()
        self._units("attention_units", self.attention_units)
        self._choice("attention_activation", self.attention_activation, _ACTIVATIONS)
        self._rate("attention_dropout", self.attention_dropout)
        if [len(group) for group in self.target_fields] != [len(group) for group in self.sequence_fields]:
            raise ConfigError(
                f"target_fields {self.target_fields} and sequence_fields {self.sequence_fields} must be groups of equal sizes: "
                "each target feature attends over the history of the same kind"
            )
        if not self.target_fields or not all(self.target_fields):
            raise ConfigError("target_fields and sequence_fields are empty; DIN needs one group at least")


@dataclass(frozen=True, kw_only=True)
class FiBiNETConfig(CtrConfig):
    """FiBiNET (Huang et al., RecSys 2019)."""

    network: ClassVar[str] = "fibinet"

    reduction_ratio: int = 3
    excitation: str = "relu"
    bilinear: str = "field_interaction"

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        super().__post_init__()
        self._positive("reduction_ratio", self.reduction_ratio)
        self._choice("excitation", self.excitation, ("relu", "sigmoid"))
        self._choice("bilinear", self.bilinear, ("field_all", "field_each", "field_interaction"))


@dataclass(frozen=True, kw_only=True)
class SDIMConfig(CtrConfig):
    """SDIM (Cao et al., CIKM 2022): long histories read by hash collisions, recent ones by target attention.

    Defaults m = 48 hashes in groups of 3 (paper §4.2). ``compat="fuxictr"`` reads the short window as FuxiCTR 2.3 does: it
    holds ``short_seq_len - 1`` entries, and its mask is shifted by one position, so that rows whose history is shorter than
    the window lose their oldest entry there.
    """

    network: ClassVar[str] = "sdim"

    target_fields: tuple[str, ...] = ("item_id", "cate_id")
    sequence_fields: tuple[str, ...] = ("item_history", "cate_history")
    num_hashes: int = 16
    hash_bits: int = 3
    l2_norm: bool = True  # normalize the vector sum of every signature (paper; off by default in FuxiCTR)
    short_seq_len: int = 50
    attention_dim: int = 64
    num_heads: int = 1
    projections: bool = True  # query, key, value and output matrices in the short attention
    use_scale: bool = True
    attention_dropout: float = 0.0
    compat: str = "paper"

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        super().__post_init__()
        for name in ("num_hashes", "hash_bits", "short_seq_len", "attention_dim", "num_heads"):
            self._positive(name, getattr(self, name))
        self._rate("attention_dropout", self.attention_dropout)
        self._choice("compat", self.compat, ("paper", "fuxictr"))
        if not self.target_fields or len(self.target_fields) != len(self.sequence_fields):
            raise ConfigError(
                f"target_fields {self.target_fields} and sequence_fields {self.sequence_fields} must be equally many names"
            )
        width = self.attention_dim if self.projections else self.item_dim
        if width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide the width {width} of the short attention")

    @property
    def item_dim(self) -> int:
        """Width of one history entry: the embeddings of all its features side by side."""
        return self.embedding_dim * len(self.target_fields)


NETWORKS: dict[str, type[CtrConfig]] = {
    cls.network: cls for cls in (DCNv2Config, DeepFMConfig, DINConfig, FiBiNETConfig, SDIMConfig)
}
"""Config class by network name."""

# FuxiCTR's name of a setting -> ours, per network.
_COMMON = {"embedding_dim": "embedding_dim", "batch_norm": "batch_norm", "net_dropout": "dropout"}
_FUXICTR: dict[str, dict[str, str]] = {
    "dcnv2": {
        "model_structure": "structure",
        "num_cross_layers": "cross_layers",
        "parallel_dnn_hidden_units": "hidden_units",
        "dnn_activations": "activation",
    },
    "deepfm": {"hidden_units": "hidden_units", "hidden_activations": "activation"},
    "din": {
        "dnn_hidden_units": "hidden_units",
        "dnn_activations": "activation",
        "attention_hidden_units": "attention_units",
        "attention_hidden_activations": "attention_activation",
        "attention_dropout": "attention_dropout",
        "din_use_softmax": "softmax",
        "din_target_field": "target_fields",
        "din_sequence_field": "sequence_fields",
    },
    "fibinet": {
        "hidden_units": "hidden_units",
        "hidden_activations": "activation",
        "excitation_activation": "excitation",
        "reduction_ratio": "reduction_ratio",
        "bilinear_type": "bilinear",
    },
    "sdim": {
        "dnn_hidden_units": "hidden_units",
        "dnn_activations": "activation",
        "num_hashes": "num_hashes",
        "hash_bits": "hash_bits",
        "l2_norm": "l2_norm",
        "short_seq_len": "short_seq_len",
        "attention_dim": "attention_dim",
        "num_heads": "num_heads",
        "use_qkvo": "projections",
        "use_scale": "use_scale",
        "attention_dropout": "attention_dropout",
    },
}
# What FuxiCTR assumes where a setting is not given and its assumption is not the default above.
_FUXICTR_DEFAULTS: dict[str, dict[str, Any]] = {
    "din": {"attention_dropout": 0.0, "softmax": False},
    "sdim": {"l2_norm": False, "compat": "fuxictr"},
}
_FUXICTR_COMMON_DEFAULTS: dict[str, Any] = {"batch_norm": False, "dropout": 0.0, "activation": "relu"}


def from_fuxictr(params: Mapping[str, Any], **own: Any) -> CtrConfig:
    """Return the config of a FuxiCTR ``model_config`` entry (``params["model"]`` names the network).

    Settings that do not fix the network (learning rate, regularizers, paths) are passed over; ``own`` overrides or adds
    settings under our names. Raises ``ConfigError`` for networks and variants that are not built here.
    """
    name = str(params.get("model", "")).lower()
    if name not in _FUXICTR:
        raise ConfigError(
            f"model {params.get('model')!r} is not built here{nearest(name, _FUXICTR)}; there are {sorted(_FUXICTR)}"
        )
    if params.get("use_low_rank_mixture"):
        raise ConfigError("use_low_rank_mixture: the mixture of low-rank cross layers is not built here")
    values: dict[str, Any] = {"network": name} | _FUXICTR_COMMON_DEFAULTS | _FUXICTR_DEFAULTS.get(name, {})
    names = _COMMON | _FUXICTR[name]
    if params.get("model_structure") == "stacked":
        names = names | {"stacked_dnn_hidden_units": "hidden_units"}
        names.pop("parallel_dnn_hidden_units")
    for theirs, ours in names.items():
        if theirs in params:
            value = params[theirs]
            values[ours] = value.lower() if ours in ("activation", "attention_activation", "excitation") else value
    if name == "din":
        for key in ("target_fields", "sequence_fields"):
            if key in values:
                values[key] = _groups(values[key])
    return CtrConfig.from_json(values | own)


def _groups(fields: Any) -> tuple[tuple[str, ...], ...]:
    """FuxiCTR takes a name, a tuple of names (one group), or a list whose entries are one or the other."""
    if isinstance(fields, str):
        return ((fields,),)
    if isinstance(fields, tuple) and all(isinstance(entry, str) for entry in fields):
        return (fields,)
    return tuple((entry,) if isinstance(entry, str) else tuple(entry) for entry in fields)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value
