"""Settings of the point-process networks, with the published defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from connectors.errors import ConfigError
from models.settings import Settings

__all__ = ["Backbone", "TppConfig"]

Backbone = Literal["attnhp", "s2p2", "nhp", "thp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TppConfig(Settings):
    """Sizes of a network. Defaults are those of the official PromptTPP code (its yaml and its prompt layer)."""

    backbone: Backbone = "attnhp"
    """``attnhp`` attends to a window of events; ``s2p2`` and ``nhp`` keep a state of fixed size; ``thp`` is a peer."""
    types: int
    """Kinds of events; id ``types`` is padding."""
    hidden: int = 32
    time_dim: int = 16
    """Width of the time encoding; even."""
    layers: int = 2
    heads: int = 2
    state: int = 16
    """Complex numbers that a layer of ``s2p2`` keeps."""
    slowest: float = 0.02
    """Slowest rate at which a layer of ``s2p2`` forgets, per unit of model time: what it remembers of an old regime misleads it
    in a new one, so under drift about 0.1 is better."""
    feed_forward: int = 16
    """Inner width of the MLP of ``thp``."""
    pool: int = 10
    """Prompts of a pool; 0: no prompts (``attnhp`` is then plain AttNHP)."""
    top_k: int = 5
    """Prompts read."""
    prompt_length: int = 5
    """Tokens of a prompt."""
    prompt_head: bool = False
    """Each prompt also holds a change of the rate head (``s2p2``, ``nhp``), so that what it learns stays with its readers;
    and the file tells how often each was read in the training."""
    query_events: int = 0
    """Events that the prompt query remembers: 0 is the mean over the whole history (published), n forgets by 1/n per event."""
    layer_norm: bool = False
    """Normalize probe states after each layer (``attnhp``)."""
    scaled: bool = False
    """Learn the sharpness of each type's softplus (EasyTPP), instead of 1 (official)."""
    time_scale: float = 1.0
    """Seconds per unit of model time; the mean gap of the training data is a good one."""
    type_names: tuple[str, ...] = ()
    """Names of the types, in the order of their ids; empty: types are numbers."""

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        if self.backbone not in get_args(Backbone):
            raise ConfigError(f"backbone is {self.backbone!r}; it must be one of {list(get_args(Backbone))}")
        for name in ("types", "hidden", "layers", "heads", "state", "feed_forward", "prompt_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.time_dim < 2 or self.time_dim % 2:
            raise ConfigError(f"time_dim is {self.time_dim}; it must be even and at least 2")
        if self.pool and not 1 <= self.top_k <= self.pool:
            raise ConfigError(f"top_k is {self.top_k}, the pool has {self.pool} prompts; top_k must be 1 to {self.pool}")
        if self.pool < 0 or self.query_events < 0:
            raise ConfigError("pool and query_events must be at least 0")
        if not 0 < self.time_scale < float("inf"):
            raise ConfigError(f"time_scale is {self.time_scale}; it must be a number of seconds above 0")
        if not 0 < self.slowest < 20:
            raise ConfigError(f"slowest is {self.slowest}; it must be above 0 and below 20 per unit of model time")
        if self.backbone == "thp" and (self.pool or self.hidden % self.heads):
            raise ConfigError("backbone thp has no prompts (set pool=0), and hidden must be a multiple of heads")
        if self.prompt_head and (not self.pool or self.backbone not in ("s2p2", "nhp")):
            raise ConfigError(
                "prompt_head needs prompts and backbone s2p2 or nhp; leave it out, or set pool above 0 and one of these"
            )
        if self.type_names and len(self.type_names) != self.types:
            raise ConfigError(f"{len(self.type_names)} type_names are given for {self.types} types")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; ``prompt_head`` only where it is set, as in files that know no such setting."""
        values = Settings.to_json(self)
        return values if self.prompt_head else {name: value for name, value in values.items() if name != "prompt_head"}

    @property
    def token_dim(self) -> int:
        """Width of an event token: embedding and time encoding."""
        return self.hidden + self.time_dim

    @property
    def query_dim(self) -> int:
        """Width of prompt keys and queries: event tokens, or what a recurrent network tells histories apart by."""
        return self.token_dim if self.backbone == "attnhp" else 2 * self.hidden + self.time_dim

    @property
    def pools(self) -> int:
        """Number of prompt pools: two for each attention layer (keys, values), one for a recurrent network."""
        if not self.pool:
            return 0
        return 2 * self.heads * self.layers if self.backbone == "attnhp" else 1

    @property
    def prompt_rows(self) -> int:
        """Vectors of a prompt: its tokens, and the change of the rate head."""
        return self.prompt_length + self.types * self.prompt_head

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of the network's own cells, which are replaced at every event of a key."""
        head: dict[str, tuple[int, ...]] = {"head": (self.types, self.hidden)} if self.prompt_head else {}
        match self.backbone:
            case "nhp":  # values, where they decay to, how fast, and the output gate
                return {name: (self.hidden,) for name in ("cell", "target", "decay", "gate")} | head
            case (
                "s2p2"
            ):  # the states and what they relax to (real parts, then imaginary), the first input, how the last is read
                width = (self.layers, 2 * self.state)
                read = {"read": (2, self.hidden)} if self.pool else {}
                return {"state": width, "target": width, "input": (self.hidden,)} | read | head
            case "thp":  # the hidden state at the latest event
                return {"hidden": (self.hidden,)}
            case _:
                return {}

    def cell_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of all cells: the network's own, and the sums from which prompts are chosen."""
        if not self.pool:
            return self.state_shapes()
        if self.backbone == "attnhp":
            return {"query": (self.heads * self.layers, self.token_dim), "weight": (1,)}
        return self.state_shapes() | {"query": (self.query_dim,), "weight": (1,), "last": (self.hidden,)}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of what is cached of every event of the window; empty where the state has a fixed size."""
        if self.backbone not in ("attnhp", "thp"):
            return {}
        layers = self.layers * (self.heads if self.backbone == "attnhp" else 1)
        return {"key": (layers, self.hidden), "value": (layers, self.hidden)}

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of one read."""
        return self.top_k * self.prompt_length if self.pool else 0
