"""Options of the operator ``prompttpp``; the network's sizes come with its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from operators.streams import StreamOptions

__all__ = ["PromptTPPOptions", "cautions"]


@dataclass(frozen=True, kw_only=True)
class PromptTPPOptions(StreamOptions):
    """What a user can set for ``type: prompttpp`` (arXiv 2310.04993)."""

    checkpoint: str = option(
        REQUIRED,
        "Network: a safetensors file of `streambank train prompttpp`, or converted from an official one, or "
        "hf://ORG/NAME[@REVISION].",
        path=True,
    )
    types: Literal["id", "name"] = option(
        "id", "The column `type`: ids (int32) from 0, or names (string) as the checkpoint lists them."
    )
    unknown_type: Literal["refuse", "other"] = option(
        "refuse", "Events of a type that the network does not know: `refuse`, or `other` (count as its type named `other`)."
    )
    max_streams: int = option(
        10_000, "Keys with a memory at the same time; memory for them is allocated at the start.", unit="streams", ge=1
    )
    window: int = option(
        64, "Latest events kept of each key: what attention sees, what states are made anew from.", unit="events", ge=2
    )
    bank_gib: float = option(4.0, "Upper bound of the memory of one shard; checked before the start.", unit="GiB", gt=0)

    predict: bool = option(True, "Predict the next event after each one; without it events are only scored, which is faster.")
    points: int = option(20, "Grid of the integral between two events; more are more exact.", ge=2)
    grid: int = option(41, "Lags of a prediction: 41 are right to 1e-3, 25 to 5e-3.", ge=9)
    allowed_lateness_s: float = option(
        0.0, "An event older than its key's latest by up to this much is put where it belongs, if the window goes back so far.",
        unit="s", ge=0,
    )  # fmt: skip
    max_skew_s: float | None = option(
        None, "Refuse events further ahead of their key's latest one, for clocks that jump; None: pauses may be of any length.",
        unit="s", gt=0,
    )  # fmt: skip

    learn: Literal["prompts", "prompts+head", "all", "off"] = option(
        "prompts",
        "What learns from the stream, for all keys of a shard together; `off`: nothing, and keys may move between shards.",
    )
    learn_batch: int = option(256, "Scored events between two steps, each of which is learned from once.", unit="events", ge=1)
    learn_interval_s: float | None = option(
        None,
        "Take the step with fewer events as soon as one comes so long after the first that waits for it, by event time.",
        unit="s", gt=0,
    )  # fmt: skip
    learn_steps: int = option(1, "Updates per step.", ge=1)
    learn_history: int = option(16, "Events before the learned ones that a step encodes with gradient.", unit="events", ge=1)
    learning_rate: float = option(3e-2, "Of Adam, for the prompts that a step reads most; others move in proportion.", gt=0)
    network_rate: float | None = option(
        None, "Of Adam, for the network's own weights (head, or all); None: a fifth of learning_rate.", gt=0
    )
    alpha: float = option(0.1, "Weight of drawing the keys of chosen prompts towards their queries (published: 0.1).", ge=0)
    common_share: float = option(
        0.0,
        "Share of what all keys looked like in the last step in the query that chooses prompts; the rest is the key's own. For "
        "drift that all keys take part in: known sooner and more surely than from one key's latest events. 0: none.",
        ge=0, le=1,
    )  # fmt: skip
    novelty: float = option(
        0.0,
        "Where what all keys look like has a smaller cosine than this to every prompt's key, the prompts that were read least "
        "are moved there, as many as a query reads, and begin with what was read so far: new behavior gets prompts of its own. "
        "0: never.",
        ge=0, lt=1,
    )  # fmt: skip
    refresh_lag: int | None = option(
        None,
        "Make a key's state anew from its window when it is more than so many steps old: 0 is exact and slow, None never.",
        unit="steps",
        ge=0,
    )

    def __post_init__(self) -> None:
        """Check across fields. Raises ``ConfigError``."""
        if self.learn == "off" and self.refresh_lag is not None:
            raise ConfigError("refresh_lag does nothing with learn='off', where states never grow old; remove it")
        if self.learn in ("off", "prompts") and self.network_rate is not None:
            raise ConfigError(f"network_rate does nothing with learn='{self.learn}': the network stays as it is; remove it")
        if self.common_share and self.learn == "off":
            raise ConfigError("common_share does nothing with learn='off', which takes no steps; remove it")
        if self.novelty and not self.common_share:
            raise ConfigError(
                f"novelty={self.novelty:g} needs common_share above 0, to tell what is new; set it, or no novelty"
            )
        if self.learn != "off" and self.learn_history >= self.window:
            raise ConfigError(
                f"learn_history={self.learn_history} leaves nothing of window={self.window} to learn; lower it, or raise window"
            )


def cautions(options: PromptTPPOptions) -> Sequence[tuple[str, str]]:
    """Return options that are allowed but hardly meant."""
    if options.learn != "off" and options.learn_batch > options.max_streams * (options.window - options.learn_history):
        return [("learn_batch", "is more events than all windows hold: most of them will not be learned from")]
    return []
