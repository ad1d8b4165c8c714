"""Rates of events over time, with the events that came: the picture that a training leaves beside its checkpoint."""

# L events of a sequence, G moments, K types

from __future__ import annotations

import numpy as np
import torch

from connectors.charts import Lane, strip_chart
from models.prompttpp.events import EventSet
from models.prompttpp.process import PointProcess
from models.training import Picture, at_rest

__all__ = ["show_rates"]

_EVENTS, _MOMENTS, _MOST_TYPES = 40, 600, 6


def show_rates(model: PointProcess, events: EventSet) -> Picture:
    """Show the longest sequence's first events: of its most frequent types the rate over time, and in red when they came.

    The rate at a moment is what the network expects by the events before it.
    """
    scale, types = model.config.time_scale, model.config.types
    batch = events.batch([int(events.lengths.argmax())], scale)
    device = next(model.parameters()).device
    time_L, type_L = batch.time_BL[0, :_EVENTS], batch.type_BL[0, :_EVENTS].clamp_max(types - 1)
    moment_G = torch.linspace(0.0, float(time_L[-1]), _MOMENTS, dtype=time_L.dtype)
    after_G = (torch.searchsorted(time_L, moment_G) - 1).clamp_min(0)  # the event at a moment is not known before it
    lag_G = (moment_G - time_L[after_G]).clamp_min(0)
    with at_rest(model):
        run = model.run(
            time_L[None].to(device),
            type_L[None].to(device),
            lag_G[None, :, None].to(device),
            after_BC=after_G[None].to(device),
        )
    rate_GK = run.rate_BLGK[0, :, 0].float().cpu().numpy() / scale
    count_K = np.bincount(type_L.numpy(), minlength=types)
    chosen = sorted(np.argsort(-count_K, kind="stable")[:_MOST_TYPES].tolist())
    step = float(time_L[-1]) / _MOMENTS or 1.0
    names = model.config.type_names
    lanes = [
        Lane(
            name=f"{names[kind] if names else f'type {kind}'} ({count_K[kind]}, max {rate_GK[:, kind].max():.3g}/s)",
            values_N=rate_GK[:, kind],
            ticks=(time_L[type_L == kind] / step).tolist(),
        )
        for kind in chosen
    ]
    return strip_chart(f"rates of {len(time_L)} events in {float(time_L[-1]) * scale:.3g} s", lanes)
