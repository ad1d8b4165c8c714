"""From options to the network and its name, and the network in batches of windows. No streams, no banks."""

# B streams, W windows, T samples, C channels, P patches, N tokens, D width, K states

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.hub import weights_file
from models.memprompttss.checkpoint import load_network
from models.memprompttss.header import SMALL_WEIGHTS
from models.memprompttss.model import MemPromptTSS, Prompts
from models.uploads import upload, upload_values
from models.weight_files import weights_name
from operators.memprompttss.config import MemPromptTSSOptions

__all__ = ["Network", "build_network"]

Floats = npt.NDArray[np.float32]


def build_network(options: MemPromptTSSOptions, device: torch.device) -> Network:
    """Load the network. Raises ``CheckpointMismatch``."""
    file = weights_file(options.checkpoint, SMALL_WEIGHTS)
    return Network(load_network(file, options.settings, device=device), options.batch_windows, device)


class Network:
    """The network for serving: at most ``batch`` windows at a time, NumPy in and out but for what stays on the device."""

    def __init__(self, model: MemPromptTSS, batch: int, device: torch.device) -> None:
        self.model, self.batch, self.device = model, batch, device
        config = model.config
        self.name = weights_name("memprompttss", config.to_json(), model.state_dict())
        self._mean_C = np.array(config.mean or [0.0] * config.channels, np.float32)
        self._std_C = np.array(config.std or [1.0] * config.channels, np.float32)

    def standardize(self, values: Floats) -> Floats:
        """Take mean and deviation of the training data out, [.., C]."""
        out: Floats = (values - self._mean_C) / self._std_C
        return out

    @torch.inference_mode()
    def encode(self, x_WTC: Floats) -> Tensor:
        """Return the tokens of windows, [W, P, D] on the device. Each window as if it were alone."""
        parts = torch.split(torch.from_numpy(x_WTC), self.batch)
        return torch.cat([self.model.ts_encoder(upload(part, self.device), alone=True) for part in parts])

    @torch.inference_mode()
    def remember(self, prompts: Prompts, x_RTC: Floats) -> Tensor:
        """Return the memory tokens [R, D] of prompts [R], on the device."""
        on_device = (upload(part, self.device) for part in (prompts.kind, prompts.state, prompts.boundary, prompts.incorrect))
        context = upload_values(x_RTC, self.device)
        return self.model.remember(Prompts(*on_device), context, alone=True)

    @torch.inference_mode()
    def states(self, tokens_WPD: Tensor, m_BND: Tensor, valid_BN: npt.NDArray[np.bool_], of_W: npt.NDArray[np.int64]) -> Tensor:
        """Return the probabilities [W, T, K] of windows, each with its bank ``of_W``, on the device.

        Banks without a valid token are empty; the host knows which.
        """
        out, places = [], []
        silent_W = ~valid_BN[of_W].any(1)
        empty = m_BND[:1, :0]
        for rows_W, is_silent in ((np.flatnonzero(silent_W), True), (np.flatnonzero(~silent_W), False)):
            for first in range(0, len(rows_W), self.batch):
                rows = rows_W[first : first + self.batch]
                x_WPD = tokens_WPD[upload_values(rows, self.device)]
                if is_silent:
                    logits = self.model.decode(
                        x_WPD, empty, None, torch.zeros(len(rows), dtype=torch.int64, device=self.device)
                    )
                else:
                    banks, local = np.unique(of_W[rows], return_inverse=True)
                    chosen = upload_values(banks, self.device)
                    there = valid_BN[banks]
                    width = int(np.flatnonzero(there.any(0)).max()) + 1  # no column behind the last token of these banks
                    there = there[:, :width]
                    mask = None if there.all() else upload_values(there, self.device)
                    logits = self.model.decode(x_WPD, m_BND[chosen, :width], mask, upload_values(local, self.device))
                out.append(logits.softmax(2))
                places.append(rows)
        if len(out) == 1:
            return out[0]
        return torch.cat(out)[upload_values(np.argsort(np.concatenate(places)), self.device)]
