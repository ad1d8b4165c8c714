"""Box head: two fully connected stages, each enhanced by attention over remembered rows, then class and box outputs.

Holds weights only. Where the keys of a stage come from (a bank, references) is the caller's business.
"""

# B batch, N RoIs, M keys, F flattened RoI features, C channels, K classes

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.mamba.attention import Attention
from models.mamba.config import MambaConfig

__all__ = ["BoxHead"]


class BoxHead(nn.Module):
    """Stage i: ``h = fc[i](x)``; ``y = h + attention[i](h, keys_i)``; ``x = relu(y)`` (MAMBA §3.4).

    Banks store ``y`` before the ReLU and attention reads such rows; only the next layer sees the ReLU.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inputs = config.neck_channels * config.roi_size**2
        widths = (inputs, *(config.fc_channels,) * config.stages)
        self.classes = len(config.classes)
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.attention = nn.ModuleList(Attention(config.fc_channels, config.heads) for _ in range(config.stages))
        self.logits = nn.Linear(config.fc_channels, self.classes + 1)
        self.deltas = nn.Linear(config.fc_channels, self.classes * 4)
        # Attention keeps PyTorch's default Linear initialization, as the official run did.
        for layer in self.fc:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def predict(self, x_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``cls_BNK1`` logits (background last) and ``reg_BNK4`` deltas, both float32."""
        reg_BNK4 = self.deltas(x_BNC).unflatten(-1, (self.classes, 4))
        return self.logits(x_BNC).float(), reg_BNK4.float()

    def forward(
        self, x_BNF: Tensor, references_BMF: Tensor | None = None, valid_BM: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class logits and deltas with the plain features of reference RoIs as keys.

        This is training and the first frame of the official protocol; the references themselves are not enhanced. Without
        references it is the plain two-layer head of Faster R-CNN.
        """
        x_BNC, ref_BMC = x_BNF, references_BMF
        for fc, attention in zip(self.fc, self.attention, strict=True):
            x_BNC = fc(x_BNC)
            if ref_BMC is not None:
                ref_BMC = fc(ref_BMC)
                x_BNC = x_BNC + attention(x_BNC, ref_BMC, valid_BM)
                ref_BMC = F.relu(ref_BMC)
            x_BNC = F.relu(x_BNC)
        return self.predict(x_BNC)
