"""Where streams are cut into clips, against a loop that anyone can read; neighbors; the codec of memories."""

import numpy as np
import pytest
import torch

from operators.videostreaming.rules import ClipCodec, CutRules, clip_spec, cut_clips, joined

RULES = CutRules(frames=4, clip_us=2_000_000, gap_us=900_000)


def clips_of(times_us: list[int]) -> list[list[int]]:
    """Return the frames of each clip, the open one last, one frame after the other."""
    clips: list[list[int]] = [[]]
    for time_us in times_us:
        now = clips[-1]
        if now and (time_us - now[0] >= RULES.clip_us or time_us - now[-1] > RULES.gap_us):
            clips.append([])
        clips[-1].append(time_us)
        if len(clips[-1]) == RULES.frames:
            clips.append([])
    return clips


@pytest.mark.parametrize("seed", range(5))
def test_clips_are_cut_as_one_by_one_however_frames_arrive(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([100_000, 500_000, 700_000, 1_000_000], size=60)).tolist()
    found: list[list[int]] = []
    open_times: list[int] = []
    while times_left := times[sum(map(len, found)) + len(open_times) :]:
        new = times_left[: int(rng.integers(1, 9))]
        together = open_times + new
        cuts, start = cut_clips(together, len(open_times), RULES)
        found += [together[cut.start : cut.stop] for cut in cuts]
        assert all(together[cut.by] in new for cut in cuts)
        open_times = together[start:]
    assert [*found, open_times] == clips_of(times)


def test_neighboring_clips_are_joined() -> None:
    assert [list(run) for run in joined([1, 2, 5, 7, 8, 9])] == [[0, 1], [2], [3, 4, 5]]
    assert joined([]) == []


def test_a_memory_and_its_facts_are_stored_as_they_are() -> None:
    spec, codec = clip_spec(3, 4, torch.bfloat16), ClipCodec(torch.bfloat16)
    memory = torch.randn(2, 1, 3, 4).bfloat16()
    fields = codec.encode(memory, memory, {"facts": torch.tensor([[[1, 2, 3]], [[4, 5, 6]]])})
    assert {name: tuple(row.shape[1:]) for name, row in fields.items()} == {
        name: row.shape for name, row in codec.fields(spec).items()
    }
    back, facts = codec.decode(fields)
    assert torch.equal(back, memory) and facts.tolist() == [[1, 2, 3], [4, 5, 6]]
