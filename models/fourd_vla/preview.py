"""What a policy does so far: paths of held-out episodes, or answers about rendered scenes. Pictures beside the checkpoint."""

# R rows of an episode, S samples, K frames kept

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from connectors.charts import line_chart, sheet
from models.fourd_vla.model import Actions, FourDVLA
from models.fourd_vla.scenes import COLORS
from models.fourd_vla.tasks import Samples, Task
from models.training import Picture, at_rest

__all__ = ["SHOWN", "show_answers", "show_path"]

SHOWN = 4
"""Samples of a task in a picture."""
_ANSWERS = {4: list(COLORS), 3: ["never", "once", "twice"], 2: ["no", "yes"]}
"""Words for the answers of tasks with so many of them."""


def show_path(model: FourDVLA, said: Callable[[], Tensor], wanted_R7: Tensor) -> Picture:
    """Show from above where the moves of an episode lead: as demonstrated, and as the policy says at each of its frames.

    ``said``: computes the actions [R, 7] in meters for the frames of the episode, with the model at rest.
    """
    with at_rest(model):
        said_R7 = said()
    paths = {"demonstrated": wanted_R7, "policy": said_R7}
    lines = {}
    for name, action_R7 in paths.items():
        at_R3 = torch.cat([torch.zeros(1, 3), action_R7[:, :3].float().cumsum(0)])
        lines[name] = (at_R3[:, 0].numpy(), at_R3[:, 1].numpy())
    gripper = float(((said_R7[:, 6] > 0.5) == (wanted_R7[:, 6] > 0.5)).float().mean())
    return line_chart(f"path from above, y in m, sum of {len(wanted_R7)} moves; gripper {gripper:.0%} right", lines, x="x in m")


def show_answers(
    model: FourDVLA, act: Callable[[], Actions], samples: Samples, age_SK: Tensor, task: Task, scale_3: Tensor
) -> Picture:
    """Show samples: the frames kept of each, oldest first, what the policy answers, and what is right."""
    with at_rest(model):
        said = act()
    move_S3 = said.translation_B3.float().cpu() * scale_3
    answer_S = task.decode(move_S3, said.gripper_B.float().cpu())
    rows = []
    for sample, text in enumerate(samples.instruction[:SHOWN]):
        if task.answers:
            words = _ANSWERS[task.answers]
            told = f"says {words[int(answer_S[sample])]}, right: {words[int(samples.answer_S[sample])]}"
        else:
            told = f"{100 * float((move_S3[sample] - samples.move_S3[sample]).norm()):.0f} cm off"
        frames = []
        for age in age_SK[sample].tolist():
            frame = samples.color_STHW3[sample, samples.color_STHW3.shape[1] - 1 - age].numpy()
            frames.append((frame, f"{age} ago" if age else "now"))
        rows.append((f"{text}?\n{told}", frames))
    return sheet(rows, height=80, left=320)
