"""EM-LLM: a stream is cut into events where it surprises, and events are read with their neighbours (arXiv 2407.09450).

For video a frame is what a token is for text: surprise is 1 - cosine of consecutive representatives (our reading). Functions of
one stream; nothing here looks ahead except the refinement, which sees one event further.
"""

# N frames, D width, E events, R chosen frames, W window, T tokens

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.block_policies.kept_tokens import highest

__all__ = [
    "attended_representative",
    "contiguous_blocks",
    "event_starts",
    "frame_surprise",
    "refine_starts",
    "select_events",
]

_MARGIN = 1e-9


def frame_surprise(representatives_ND: Tensor) -> Tensor:
    """Return 1 - cosine of each frame's representative to the one before, [N] float32; 0 for the first frame."""
    x_ND = representatives_ND.float()
    return F.pad(1 - F.cosine_similarity(x_ND[1:], x_ND[:-1], dim=1), (1, 0))


def event_starts(surprise_N: Tensor, *, window: int, gamma: float = 1.0, shortest: int = 8, longest: int = 128) -> Tensor:
    """Return the first frame of each event, int64 [E], ascending, beginning with 0.

    A frame begins an event where its surprise exceeds mean + ``gamma`` * standard deviation (of the population) of the up to
    ``window`` frames before it. Events have ``shortest`` to ``longest`` frames: a boundary that comes too early is passed over,
    one that does not come is set. The last event may be short: it goes on.
    """
    if not 1 <= shortest <= longest or window < 1:
        raise ConfigError(
            f"shortest={shortest}, longest={longest}, window={window}; need 1 <= shortest <= longest, window >= 1"
        )
    count = surprise_N.shape[0]
    if not count:
        return torch.empty(0, dtype=torch.int64, device=surprise_N.device)
    x_N = surprise_N.double().cpu()
    sums_N, squares_N = (F.pad(v.cumsum(0), (1, 0)) for v in (x_N, x_N.square()))
    stop_N = torch.arange(count)
    start_N = (stop_N - window).clamp_min(0)
    size_N = (stop_N - start_N).clamp_min(1)
    mean_N = (sums_N[stop_N] - sums_N[start_N]) / size_N
    deviation_N = ((squares_N[stop_N] - squares_N[start_N]) / size_N - mean_N.square()).clamp_min(0).sqrt()
    # Running sums round: without the margin the equal surprises of a still scene could exceed their own mean.
    crossings = ((x_N > mean_N + gamma * deviation_N + _MARGIN) & (stop_N > 0)).nonzero()[:, 0].tolist()
    starts = [0]
    for crossing in [*crossings, count]:  # per surprise, not per frame
        while crossing - starts[-1] > longest:
            starts.append(starts[-1] + longest)
        if crossing - starts[-1] >= shortest and crossing < count:
            starts.append(crossing)
    return torch.tensor(starts, dtype=torch.int64, device=surprise_N.device)


def refine_starts(starts_E: Tensor, likeness_NN: Tensor) -> Tensor:
    """Move each boundary between two events to where the modularity of the two is highest; one pass from the first to the last.

    ``likeness_NN``: similarity of the frames' keys, symmetric; negative ones count as 0. The graph of a boundary is that of the
    two events it separates: Q = 1/2m sum_ij (A_ij - k_i k_j / 2m) over pairs in the same event. Of equal positions the first.
    """
    edges = [*starts_E.tolist(), likeness_NN.shape[0]]
    for i in range(1, len(edges) - 1):
        low, high = edges[i - 1], edges[i + 1]
        weight_MM = likeness_NN[low:high, low:high].double().clamp_min(0)
        degree_M, total = weight_MM.sum(1), weight_MM.sum().clamp_min(torch.finfo(torch.float64).tiny)
        gain_MM = F.pad((weight_MM - degree_M[:, None] * degree_M / total).cumsum(0).cumsum(1), (1, 0, 1, 0))
        cut_P = torch.arange(1, high - low, device=likeness_NN.device)
        left_P = gain_MM[cut_P, cut_P]
        right_P = gain_MM[-1, -1] - gain_MM[cut_P, -1] - gain_MM[-1, cut_P] + left_P
        edges[i] = low + 1 + int(torch.argmax(left_P + right_P))
    return torch.tensor(edges[:-1], dtype=torch.int64, device=starts_E.device)


def attended_representative(keys_TD: Tensor, attention_T: Tensor, count: int = 4) -> Tensor:
    """Return the mean of the ``count`` keys that received most attention, [..., D] float32."""
    index = highest(attention_T, min(count, attention_T.shape[-1]))
    return keys_TD.float().gather(-2, index[..., None].expand(*index.shape, keys_TD.shape[-1])).mean(-2)


def select_events(scores_N: Tensor, starts_E: Tensor, frames: int) -> Tensor:
    """Return the frames, ascending and at most ``frames``, of the events with the highest mean score: in place of fixed chunks.

    Events are taken whole, best first (of equal ones the earlier), until the next one does not fit; that one gives its best
    frames.
    """
    count = scores_N.shape[0]
    if count <= frames:
        return torch.arange(count, device=scores_N.device)
    length_E = torch.diff(starts_E, append=starts_E.new_tensor([count]))
    event_N = torch.repeat_interleave(torch.arange(len(starts_E), device=starts_E.device), length_E)
    mean_E = scores_N.new_zeros(len(starts_E)).index_add_(0, event_N, scores_N) / length_E
    order_E = mean_E.sort(descending=True, stable=True).indices
    used_E = length_E[order_E].cumsum(0)
    whole = int((used_E <= frames).sum())
    taken_N = torch.isin(event_N, order_E[:whole])
    left = frames - (int(used_E[whole - 1]) if whole else 0)
    if left and whole < len(order_E):
        start = int(starts_E[order_E[whole]])
        taken_N[start + highest(scores_N[start : start + int(length_E[order_E[whole]])], left)] = True
    return taken_N.nonzero()[:, 0]


def contiguous_blocks(
    best_R: Tensor, previous: Tensor, *, frames: int, below: int, share: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Return the frames to read, ascending and at most ``frames``, and the new contiguity buffer, newest first.

    ``best_R``: candidates, best first. All but ``share`` of the room go to the best of them. The rest is the contiguity buffer:
    of each pick, best first, the frame after it, then the one before it, then what the buffer held before (``previous``), while
    there is room; frames that were picked anyway take none.
    """
    room = int(frames * share)
    picked_R = best_R[: frames - room]
    neighbour_M = torch.stack([picked_R + 1, picked_R - 1], dim=1).flatten()
    candidate_M = torch.cat([neighbour_M, previous.to(best_R)])
    candidate_M = candidate_M[(candidate_M >= 0) & (candidate_M < below) & ~torch.isin(candidate_M, picked_R)]
    unique_U, group_M = torch.unique(candidate_M, return_inverse=True)
    place_M = torch.arange(len(candidate_M), device=best_R.device)
    first_U = place_M.new_full((len(unique_U),), len(candidate_M)).scatter_reduce_(0, group_M, place_M, "amin")
    buffer = candidate_M[first_U.sort().values[:room]]
    return torch.cat([picked_R, buffer]).sort().values, buffer
