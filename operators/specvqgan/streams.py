"""What SpecVQGAN knows of a stream besides its banks. A *take* is sound without a break. It decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from operators.streams import Stream

__all__ = ["FrameStream"]


@dataclass(slots=True, kw_only=True)
class FrameStream(Stream):
    """One stream of frames. Rows are those of the feature clock, columns those of sound; both counted from the take's begin."""

    seed: int = 0
    """Of its noise; made from its name, so no part of what is restored."""
    open: bool = False
    """A take is under way: there is a newest frame."""
    origin_us: int = 0
    """Event time of row 0."""
    row: int = 0
    """Of the newest frame; all before it are final."""
    encoded: int = 0
    """Rows of which the ring knows."""
    column: int = 0
    """The next to be made."""
    window: int = -1
    """First column of the window in use; -1: none."""
    voiced: int = 0
    """Columns of which sound was made."""
    context: int = 0
    """How many of the vocoder's frames are context."""
    made: int = 0
    """Samples."""
    told: int = 0
    """Columns whose tokens were given out."""
    base: int = 0
    """Columns, and samples, of earlier takes."""
    begins: int = 0
    known: int = 0
    """Rows that its window has seen, or that stand for those behind it."""
    lookahead: int = 0
    """Columns of them behind the first new one."""
    behind: bool = False
    """Sound is being left out."""
    fast: bool = False
    gap: bool = False
    repaired: bool = False
    marks: list[tuple[int, int]] = field(default_factory=list)
    """Of this batch: rows that are final behind which input row."""

    def restart(self) -> None:
        """End the take."""
        self.base += self.column
        self.begins += self.made
        self.open = False
        self.row = self.encoded = self.column = self.voiced = self.context = self.made = self.told = self.known = (
            self.lookahead
        ) = 0
        self.window = -1
