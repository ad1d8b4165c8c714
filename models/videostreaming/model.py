"""The networks of VideoStreaming and nothing that changes with a stream: tower, projectors, streaming encoder, answering model.

The language models are transformers' own classes; any decoder that takes embeddings fits. Whoever has features of frames
needs no vision tower.
"""

# F frames, N tokens per frame, C width of a token, D width of the encoder, M tokens of a memory, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from connectors.extras import optional
from models.pixels import CLIP_PIXELS, HALF_PIXELS, tower_pixels
from models.uploads import upload
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.tokens import merge_patches

transformers = optional("transformers")

__all__ = ["PARTS", "TOWERS", "VideoStreamingModel", "projector"]

PARTS = ("vision_tower", "mm_projector", "streaming_encoder", "memory_projector", "language_model")
"""Parts of the network, which are also the prefixes of its checkpoint."""

TOWERS = {"clip_vision_model": (CLIP_PIXELS, True), "siglip_vision_model": (HALF_PIXELS, False)}
"""Vision towers by ``model_type``: normalization, and whether the aspect ratio is kept and the center cut out."""

_FINAL_NORMS = ("final_layernorm", "norm", "ln_f", "final_layer_norm")


def projector(inputs: int, outputs: int) -> nn.Sequential:
    """Return Linear, exact GELU, Linear (inferred shape)."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


class VideoStreamingModel(nn.Module):
    """All networks. ``vision_tower`` None: features are given. ``encoder_head``: the vocabulary head of the prefix task."""

    def __init__(
        self,
        config: VideoStreamingConfig,
        *,
        vision_tower: Any | None,
        mm_projector: nn.Module,
        streaming_encoder: Any,
        memory_projector: nn.Module,
        language_model: Any,
        encoder_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = vision_tower
        self.mm_projector = mm_projector
        self.streaming_encoder = streaming_encoder
        self.memory_projector = memory_projector
        self.language_model = language_model
        self.encoder_head = encoder_head
        self.sim_scale = nn.Parameter(torch.tensor(config.similarity_scale))
        self.summary_table: nn.Parameter | None = None
        if config.summary_init == "learned":
            width = next(mm_projector.parameters()).shape[1]
            self.summary_table = nn.Parameter(torch.zeros(config.memory_tokens, width))
        if not config.final_norm:
            leave_out_norm(streaming_encoder)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.sim_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoder's weights, and of memories."""
        dtype: torch.dtype = self.streaming_encoder.get_input_embeddings().weight.dtype
        return dtype

    @property
    def width(self) -> int:
        """Width of memories and indicators."""
        width: int = self.streaming_encoder.config.hidden_size
        return width

    @property
    def feature_width(self) -> int:
        """Width of a frame's tokens."""
        first: Any = next(iter(self.mm_projector.children()))
        width: int = first.in_features
        return width

    def frame_tokens(self, frames_FHW3: Tensor) -> Tensor:
        """Return the tokens [F, N, C] of RGB frames of 0..255, [F, H, W, 3], all of one size, with gradients where wanted."""
        tower = self.vision_tower
        if tower is None:
            raise ConfigError("videostreaming: this model has no vision tower; give features of frames")
        weight = next(tower.parameters())
        side = tower.config.image_size
        mean_std, crop = TOWERS[tower.config.model_type]
        pixels_F3HW = tower_pixels(upload(frames_FHW3, weight.device), (side, side), mean_std, crop=crop).to(weight.dtype)
        hidden = tower(pixels_F3HW, output_hidden_states=True).hidden_states[self.config.vision_layer]
        patches = (side // tower.config.patch_size) ** 2
        return merge_patches(hidden[:, hidden.shape[1] - patches :])  # without the class token that CLIP has

    def embed(self, ids_n: Tensor) -> Tensor:
        """Return the encoder's embeddings [n, D] of token ids."""
        embedded: Tensor = self.streaming_encoder.get_input_embeddings()(upload(ids_n, self.device))
        return embedded

    def encode(self, embeds_BnD: Tensor, mask_BHnn: Tensor | None = None) -> Tensor:
        """Run the streaming encoder, [B, n, D]: positions from 0, causal attention unless a mask (added to scores) is given."""
        positions_1n = torch.arange(embeds_BnD.shape[1], device=embeds_BnD.device).unsqueeze(0)
        # Without a cache or a mask transformers looks, on the device too, whether the positions are of several sequences.
        looks = mask_BHnn is None and embeds_BnD.device.type != "cpu"
        output = self.streaming_encoder(
            inputs_embeds=embeds_BnD,
            attention_mask=mask_BHnn,
            position_ids=positions_1n,
            past_key_values=transformers.DynamicCache() if looks else None,
            use_cache=False,
            return_dict=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def leave_out_norm(encoder: Any) -> None:
    """Put nothing in the place of a decoder's last norm. Raises ``ConfigError`` where it has none of the usual names."""
    name = next((name for name in _FINAL_NORMS if hasattr(encoder, name)), None)
    if name is None:
        raise ConfigError(
            f"videostreaming: final_norm=false, but {type(encoder).__name__} has no part called {' or '.join(_FINAL_NORMS)}"
        )
    setattr(encoder, name, nn.Identity())
