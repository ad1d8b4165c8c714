"""NHP, the continuous-time LSTM (Mei and Eisner, NIPS 2017) as EasyTPP computes it; prompts add to embeddings."""

# B keys, G moments, D hidden

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.recurrent import RecurrentProcess

__all__ = ["NHP"]


class NHP(RecurrentProcess):
    """Cells decay exponentially from ``cell`` to ``target`` at rate ``decay``; an event jumps all of them."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.cell = nn.Linear(2 * config.hidden, 7 * config.hidden)

    def absorb(self, cells: dict[str, Tensor], gap_B: Tensor, event_BD: Tensor, prompt_BX: Tensor | None) -> dict[str, Tensor]:
        """Return the cells after an event."""
        now_BD = self._decayed(cells, gap_B[:, None])[:, 0]
        hidden_BD = cells["gate"] * now_BD.tanh()
        event_BD = event_BD if prompt_BX is None else event_BD + prompt_BX
        parts = self.cell(torch.cat([event_BD, hidden_BD], dim=-1)).chunk(7, dim=-1)
        write, write_target, keep, keep_target = (part.sigmoid() for part in parts[:4])
        content = parts[4].tanh()
        return {
            "cell": keep * now_BD + write * content,
            "target": keep_target * cells["target"] + write_target * content,
            "decay": F.softplus(parts[6]),
            "gate": parts[5].sigmoid(),
        }

    def hidden(self, cells: dict[str, Tensor], lag_BG: Tensor) -> Tensor:
        """Return the hidden states so long after the last event."""
        return cells["gate"][:, None] * self._decayed(cells, lag_BG).tanh()

    @staticmethod
    def _decayed(cells: dict[str, Tensor], lag_BG: Tensor) -> Tensor:
        left_BGD = (-cells["decay"][:, None] * lag_BG[..., None]).exp()
        return cells["target"][:, None] + (cells["cell"] - cells["target"])[:, None] * left_BGD
