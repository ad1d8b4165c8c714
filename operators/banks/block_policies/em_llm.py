"""EM-LLM: a stream is cut into events where it surprises, and events are read with their neighbors (arXiv 2407.09450).

For video a frame is what a token is for text: surprise is 1 - cosine of consecutive representatives (our reading). Functions of
one stream; nothing here looks ahead except the refinement, which sees one event further.
"""

# N frames, D width, E events, K chosen frames, M frames beside them, P positions of a boundary

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.block_policies.kept_tokens import highest

__all__ = ["event_starts", "frame_surprise", "refine_starts", "select_events", "with_neighbors"]

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


def refine_starts(starts_E: Tensor, representatives_ND: Tensor) -> Tensor:
    """Move each boundary between two events to where the modularity of the two is highest; one pass from the first to the last.

    Frames are as alike as the product of their representatives; negative ones count as 0. The graph of a boundary is that of
    the two events it separates: Q = 1/2m sum_ij (A_ij - k_i k_j / 2m) over pairs in the same event. Of equal positions the
    first.
    """
    edges = [*starts_E.tolist(), representatives_ND.shape[0]]
    for i in range(1, len(edges) - 1):
        low, high = edges[i - 1], edges[i + 1]
        x_MD = representatives_ND[low:high].double()
        weight_MM = (x_MD @ x_MD.T).clamp_min(0)
        degree_M, total = weight_MM.sum(1), weight_MM.sum().clamp_min(torch.finfo(torch.float64).tiny)
        gain_MM = F.pad((weight_MM - degree_M[:, None] * degree_M / total).cumsum(0).cumsum(1), (1, 0, 1, 0))
        cut_P = torch.arange(1, high - low, device=x_MD.device)
        left_P = gain_MM[cut_P, cut_P]
        right_P = gain_MM[-1, -1] - gain_MM[cut_P, -1] - gain_MM[-1, cut_P] + left_P
        edges[i] = low + 1 + int(torch.argmax(left_P + right_P))
    return torch.tensor(edges[:-1], dtype=torch.int64, device=starts_E.device)


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


def with_neighbors(chosen_K: Tensor, scores_N: Tensor, room: int) -> Tensor:
    """Return the chosen frames and up to ``room`` of their neighbors, ascending: the contiguity buffer of one retrieval.

    Of each chosen frame, best score first (of equal ones the earlier), the frame after it, then the one before it; frames that
    are chosen anyway take no room.
    """
    best_K = chosen_K[scores_N[chosen_K].sort(descending=True, stable=True).indices]
    near_M = torch.stack([best_K + 1, best_K - 1], dim=1).flatten()
    near_M = near_M[(near_M >= 0) & (near_M < len(scores_N)) & ~torch.isin(near_M, chosen_K)]
    unique_U, group_M = torch.unique(near_M, return_inverse=True)
    place_M = torch.arange(len(near_M), device=near_M.device)
    first_U = place_M.new_full((len(unique_U),), len(near_M)).scatter_reduce_(0, group_M, place_M, "amin")
    return torch.cat([chosen_K, near_M[first_U.sort().values[:room]]]).sort().values
