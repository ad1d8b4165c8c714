"""Said and true click rates of rows held out: the picture that a training leaves beside its checkpoint."""

# R rows

from __future__ import annotations

import numpy as np

from connectors.charts import line_chart
from models.reloop2.base import CtrModel
from models.reloop2.examples import Examples
from models.reloop2.predict import predict
from models.training import Picture, at_rest

__all__ = ["show_rates"]

_PARTS = 20


def show_rates(model: CtrModel, examples: Examples) -> Picture:
    """Show, from the rows said to be clicked least to those said to be clicked most, how often they are and are said to be."""
    with at_rest(model):
        said_R = predict(model, examples).numpy()
    parts = np.array_split(np.argsort(said_R, kind="stable"), min(_PARTS, len(said_R)))
    share = [100 * (number + 0.5) / len(parts) for number in range(len(parts))]
    clicked_R = examples.label_R.numpy()
    lines = {
        "clicked": (share, [float(clicked_R[part].mean()) for part in parts]),
        "said": (share, [float(said_R[part].mean()) for part in parts]),
    }
    return line_chart(
        f"click rate of {len(said_R):,} rows that are held out", lines, x="% of the rows, by what is said of them"
    )
