"""Training of MemPromptTSS: prompts help in the shipped network, recipes are functions of their seed, own series load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launches import DEVICE, on_device
from training_previews import check_previews

from connectors.errors import ConfigError
from models.memprompttss.checkpoint import load_network
from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.header import SMALL_WEIGHTS
from models.memprompttss.learning import Episodes, LoopSettings
from models.memprompttss.losses import agreement
from models.memprompttss.offline import label_prompts, segment
from models.memprompttss.preview import show_states
from models.memprompttss.recipe import FREQUENCY_CONFIG, SmallSchedule, fresh_network, measure_frequencies
from models.memprompttss.sampling import PromptMix, draw_prompts, random_centers
from models.memprompttss.series import read_series, regions, split, vary
from models.memprompttss.train import train
from models.memprompttss.two_frequencies import two_frequencies
from models.training import Progress, TrainingStopped

SHORT = SmallSchedule(steps=12, batch=4, fresh=8)


def test_a_prompt_tells_the_shipped_network_the_states_of_places_that_its_context_never_saw() -> None:
    found = measure_frequencies(load_network(SMALL_WEIGHTS), 48)
    assert found["remote_0_prompts"] <= 0.65
    assert found["remote_1_prompts"] >= 0.9 and found["remote_1_not_prompts"] >= 0.9
    assert found["remote_4_prompts"] >= 0.93 and found["remote_4_not_prompts"] >= 0.93


def test_a_recipe_is_a_function_of_its_seed_and_can_be_stopped_and_resumed(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", recipe="two_frequencies", seed=3, schedule=SHORT)

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise TrainingStopped

    folder = tmp_path / "b"
    with pytest.raises(TrainingStopped):
        train(folder, recipe="two_frequencies", seed=3, schedule=SHORT, progress=stop)
    again = train(folder, recipe="two_frequencies", seed=3, schedule=SHORT, resume=True)
    first, second = (load_network(result.weights).state_dict() for result in (whole, again))
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    check_previews(whole, {"two_frequencies": 4})
    assert {"remote_0_prompts", "remote_1_prompts", "remote_8_not_prompts"} <= set(whole.metrics)


def series(folder: Path, count: int = 4, length: int = 240, labels: tuple[int, ...] = (7, 3)) -> None:
    """Write files in which a state is a frequency of two channels."""
    for n in range(count):
        x_BLC, state_BL = two_frequencies(2, length, torch.Generator().manual_seed(n), names=torch.tensor([0, 0]))
        rows = np.concatenate([x_BLC[:1].numpy()[0], x_BLC[1:].numpy()[0]], axis=1)
        label = np.array(labels)[state_BL[0].numpy()]
        text = "\n".join(f"{a:.4f},{b:.4f},{c}" for (a, b), c in zip(rows, label, strict=True))
        (folder / f"file{n}.csv").write_text(f"x,y,state\n{text}\n")


SMALL: dict[str, Any] = {"window": 32, "stride": 16, "context": 24, "windows": 2, "width": 16, "encoder_layers": 1}
SMALL |= {"decoder_blocks": 1, "steps": 6, "batch": 2, "pool": 3, "agreement": 0.5, "validate_every": 3, "learning_rate": 1e-3}


def test_own_series_are_learned_with_the_statistics_of_their_training_part(tmp_path: Path) -> None:
    series(tmp_path)
    result = train(tmp_path / "out", data=str(tmp_path), split="file", validation=0.25, test=0.25, rate_hz=50.0, **SMALL)
    config = load_network(result.weights).config
    first = dict.fromkeys(str(label) for label in read_series(str(tmp_path))[0].label_L.tolist())  # in order of appearance
    assert (config.channel_names, config.state_names, config.rate_hz) == (("x", "y"), tuple(first), 50.0)
    rows = np.concatenate([s.x_LC.numpy()[:240] for s in read_series(str(tmp_path))[:2]])
    np.testing.assert_allclose(config.mean, rows.mean(0), atol=1e-2)
    assert {"acc", "prompted_acc", "remote_acc", "boundary_f1", "covering", "mf1", "ari", "nmi"} <= set(result.metrics)
    (picture,) = check_previews(result, {"states": 3}, size=(198, 900))  # two signals; true, without and with prompts
    for lane in range(3):
        assert len(np.unique(picture[135 + 24 * lane, 172:878].reshape(-1, 3), axis=0)) >= 2, "colors of two states"
    assert result.metrics["subsequences"] == 10  # of 48 samples in two files of 240


def test_weights_are_averaged_where_it_is_asked_for_and_dropout_goes_on_after_a_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path)
    learned: list[bool] = []
    weights: list[dict[str, torch.Tensor]] = []
    losses = Episodes.losses

    def watched(self: Episodes, step: int) -> Any:
        learned.append(self.model.training)
        if step:
            weights.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return losses(self, step)

    monkeypatch.setattr(Episodes, "losses", watched)
    own: dict[str, Any] = {"data": str(tmp_path), "split": "file", "test": 0.25, **SMALL}
    train(tmp_path / "a", validation=0.25, **own)
    assert learned == [True] * 6  # validated after three
    weights.clear()
    given = load_network(train(tmp_path / "b", validation=0.0, average=0.5, **own).weights).state_dict()
    last = load_network(train(tmp_path / "c", validation=0.0, **own).weights).state_dict()  # the same updates, not averaged
    for name, tensor in given.items():
        mean = weights[0][name]
        for done, one in enumerate([*weights[1:5], last], start=2):
            keep = min(0.5, (1 + done) / (10 + done))
            mean = keep * mean + (1 - keep) * one[name]
        torch.testing.assert_close(tensor, mean)


def test_own_series_with_dropout_are_a_function_of_the_seed_and_of_nothing_else_and_can_be_resumed(tmp_path: Path) -> None:
    series(tmp_path)
    own: dict[str, Any] = {"data": str(tmp_path), "split": "file", "validation": 0.0, "average": 0.5, **SMALL, "dropout": 0.3}
    torch.manual_seed(0)
    whole = load_network(train(tmp_path / "a", **own).weights).state_dict()
    torch.manual_seed(1)
    before = torch.get_rng_state()

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise TrainingStopped

    with pytest.raises(TrainingStopped):
        train(tmp_path / "b", progress=stop, checkpoint_every=1, **own)
    again = load_network(train(tmp_path / "b", resume=True, checkpoint_every=1, **own).weights).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert torch.equal(torch.get_rng_state(), before)
    still = load_network(train(tmp_path / "c", **(own | {"dropout": 0.0})).weights).state_dict()
    assert not torch.equal(whole["state_decoder.head.weight"], still["state_decoder.head.weight"])


def test_varied_pieces_stay_within_their_part_and_keep_samples_and_states_together() -> None:
    x_LC, state_L = torch.arange(100.0)[:, None].repeat(1, 2), torch.arange(100)
    pieces = [(0, 0), (0, 20), (0, 60), (1, 0)]
    assert regions(pieces, 20) == [(0, 40), (0, 40), (60, 80), (0, 20)]
    generator = torch.Generator().manual_seed(0)
    steps, starts = set(), set()
    for _ in range(200):
        piece_LC, said_L = vary(x_LC, state_L, (0, 40), 20, 0.25, generator)
        assert piece_LC.shape == (20, 2) and float(piece_LC.min()) >= 0 and float(piece_LC.max()) <= 39
        assert ((piece_LC[:, 0] - said_L).abs() <= 0.5).all()
        step_L = piece_LC[1:, 0] - piece_LC[:-1, 0]
        assert float(step_L.max() - step_L.min()) < 1e-4
        steps.add(round(float(step_L[0]), 1))
        starts.add(int(said_L[0]))
    assert {0.8, 1.0, 1.2} <= steps and {0, 8, 16} <= starts
    whole, states = vary(x_LC, state_L, (60, 80), 20, 0.9, generator)  # cannot be slower than its part is long
    assert float(whole.max()) <= 79 and int(states.min()) >= 60


def test_a_pool_holds_prompts_of_the_whole_batch_those_of_renamed_subsequences_for_themselves() -> None:
    model = fresh_network(FREQUENCY_CONFIG, 0)
    loop = LoopSettings(pool=12)
    episodes = Episodes(model, lambda g: two_frequencies(6, 128, g), loop, torch.Generator().manual_seed(0), {})
    permuted_B = torch.tensor([True, False, False, False, False, True])
    drawn = [episodes._pooled(permuted_B, 8) for _ in range(200)]
    index_RBN, there_RBN = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    owner_RBN = index_RBN // 8
    for b in range(6):
        assert set(owner_RBN[:, b].unique().tolist()) == ({0, 5} if permuted_B[b] else {1, 2, 3, 4})
        assert 0.2 < float((owner_RBN[:, b] != b).float().mean()) < 0.8
    read_RB = there_RBN.float().mean(2)
    assert float(read_RB.min()) == 0 and float(read_RB.max()) == 1 and 0.4 < float(read_RB.mean()) < 0.6


def test_parts_of_a_split_share_no_sample(tmp_path: Path) -> None:
    series(tmp_path)
    found = read_series(str(tmp_path))
    by_time = split(found, 48, "time", 0.2, 0.2)
    assert [len(part) for part in (by_time.train, by_time.validation, by_time.test)] == [12, 4, 4]
    assert max(first for _, first in by_time.train) < min(first for _, first in by_time.test)
    by_file = split(found, 48, "file", 0.25, 0.25)
    assert [{i for i, _ in part} for part in (by_file.train, by_file.validation, by_file.test)] == [{0, 1}, {2}, {3}]


def test_data_that_cannot_be_learned_from_is_refused(tmp_path: Path) -> None:
    series(tmp_path)
    out = tmp_path / "out"
    for given, words in (
        ({"data": str(tmp_path / "none")}, "no .csv or .parquet file"),
        ({"data": str(tmp_path), "label": "kind"}, "no label column 'kind'"),
        ({"data": str(tmp_path), "windows": 200}, "nothing is left to learn from"),
        ({"recipe": "usc_had"}, "recipe 'usc_had' reads files that are not part of the package"),
        ({"recipe": "pumps"}, "there is no recipe 'pumps'"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(out, **(given if "recipe" in given else SMALL | given))
    (tmp_path / "file9.csv").write_text("x,z,state\n1,2,3\n")
    with pytest.raises(ConfigError, match="all files need the same columns"):
        train(out, data=str(tmp_path), **SMALL)


def test_drawn_prompts_tell_the_truth_unless_told_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    state_BL = torch.randint(0, 4, (6, 9), generator=generator).repeat_interleave(7, 1)
    mix = PromptMix(near_boundaries=0.5, margin=2)
    center_BP = random_centers(state_BL, 200, 10, mix, generator)
    assert int(center_BP.min()) >= 5 and int(center_BP.max()) <= 58
    said = draw_prompts(state_BL, center_BP, 4, mix, generator)
    here_BP, before_BP = state_BL.gather(1, center_BP), state_BL.gather(1, center_BP - 1)
    is_label, is_wrong = said.kind == 0, said.incorrect == 1
    assert (said.state == here_BP)[is_label & ~is_wrong].all() and (said.state != here_BP)[is_label & is_wrong].all()
    starts_BP = here_BP != before_BP
    assert (said.boundary.bool() == starts_BP)[~is_label & ~is_wrong].all()
    assert (said.boundary.bool() != starts_BP)[~is_label & is_wrong].all()
    for flags, share in ((is_label, 0.5), (is_wrong, 0.5)):
        assert abs(float(flags.float().mean()) - share) < 0.12
    lies = draw_prompts(state_BL, center_BP, 4, PromptMix(wrong=1.0), generator)
    assert (lies.state != here_BP)[(lies.kind == 0) & (lies.incorrect == 0)].all()


def test_agreement_is_the_divergence_of_states_over_the_subsequences_that_count() -> None:
    one, other = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    wanted_BW = (q * (q / p).log()).sum(-1).mean(-1)
    counts_B = torch.tensor([True, False, True])
    torch.testing.assert_close(agreement(one, other, counts_B).double(), wanted_BW[counts_B].mean(0))
    assert float(agreement(one, one).abs().max()) < 1e-6

    def parts(share: float) -> dict[str, Any]:
        loop = LoopSettings(iterations=1, agreement=share, without=0.999999)
        generator = torch.Generator().manual_seed(1)
        episodes = Episodes(fresh_network(FREQUENCY_CONFIG, 0), lambda g: two_frequencies(4, 128, g), loop, generator, {})
        return dict(next(iter(episodes.losses(0))))

    both = parts(2.0)  # no prompt is read, so that both ways say the same
    assert float(both["agreement"].detach()) < 1e-6 and float(both["silent"].detach()) == float(both["states"].detach())
    assert set(parts(0.0)) == {"states"}


def test_renamed_states_without_a_prompt_do_not_count() -> None:
    config = MemPromptTSSConfig.from_json(FREQUENCY_CONFIG.to_json() | {"dropout": 0.0})
    model = fresh_network(config, 0)

    def losses(**settings: Any) -> float:
        state: dict[str, Any] = {}
        loop = LoopSettings(iterations=1, **settings)
        generator = torch.Generator().manual_seed(1)
        episodes = Episodes(model, lambda g: two_frequencies(4, 128, g), loop, generator, state)
        return float(next(iter(episodes.losses(0)))["states"].detach())

    assert losses(permute=1.0, without=0.999999) == 0.0
    assert losses(permute=1.0, without=0.999999, pool=4) == 0.0
    assert losses(permute=0.0, without=0.999999) > 0.0


def test_with_a_pool_renamed_subsequences_share_names_and_learn_those_that_a_prompt_says() -> None:
    config = MemPromptTSSConfig.from_json(FREQUENCY_CONFIG.to_json() | {"classes": 6})
    state: dict[str, Any] = {}
    truth = torch.arange(6).repeat_interleave(24).expand(8, -1)
    loop = LoopSettings(iterations=1, permute=0.5, pool=4, mix=PromptMix(labels=1.0, incorrect=0.3))
    episodes = Episodes(
        fresh_network(config, 0), lambda _: (torch.zeros(8, 144, 1), truth), loop, torch.Generator().manual_seed(0), state
    )
    circles = set()
    for step in range(20):
        next(iter(episodes.losses(step)))
        renamed_BL, permuted_B = state["state"], state["permuted"]
        assert renamed_BL[~permuted_B].equal(truth[~permuted_B]) and len(renamed_BL[permuted_B].unique(dim=0)) <= 1
        says_BN = torch.randint(-1, 6, (8, 3))
        told_BL = episodes._told(says_BN)
        for b, at in ((b, at) for b in range(8) for at in range(0, 144, 12)):
            assert bool(told_BL[b, at]) == (renamed_BL[b, at] == truth[b, at] or bool((says_BN[b] == renamed_BL[b, at]).any()))
        if bool(permuted_B.any()):
            circles.add(int((renamed_BL != truth)[permuted_B][0].view(6, 24)[:, 0].sum()))
    assert min(circles) == 2 and max(circles) == 6


@pytest.mark.heavy
@torch.no_grad()
def test_a_series_is_segmented_where_the_model_lies_with_what_it_says_on_the_host() -> None:
    model = fresh_network(FREQUENCY_CONFIG, 0).eval()
    x_BLC, state_BL = two_frequencies(1, 200, torch.Generator().manual_seed(1))
    plain_ND, center_P = label_prompts(model, x_BLC[0], state_BL[0], 3, 5)
    wanted = segment(model, x_BLC[0], plain_ND)
    with on_device():
        model.to(DEVICE)
        bank_ND, again_P = label_prompts(model, x_BLC[0], state_BL[0], 3, 5)
        found = segment(model, x_BLC[0], bank_ND)
        picture = show_states(model, x_BLC[0], state_BL[0], ("wave",))
    assert bank_ND.device == DEVICE and torch.equal(again_P, center_P)
    assert all(part.device.type == "cpu" for part in found)
    assert torch.equal(found.state_L, wanted.state_L) and torch.equal(found.votes_L, wanted.votes_L)
    torch.testing.assert_close(found.confidence_L, wanted.confidence_L)
    assert picture.shape == (148, 900, 3)
