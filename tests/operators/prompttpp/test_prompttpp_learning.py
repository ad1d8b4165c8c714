"""Learning from the stream: prompts move and nothing else does, steps are where the rows are, staleness and refresh."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from prompttpp_streams import network, operator, stream, table

from models.prompttpp.checkpoint import load, save
from models.prompttpp.model import build_model
from models.prompttpp.prompts import Common, PromptReader, TensorPrompts, unit
from operators.prompttpp import PromptTPPOperator
from operators.prompttpp.learning import Moments, row_adam


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return network(tmp_path_factory.mktemp("network"), pool=12, top_k=2)


def prompts_of(one: PromptTPPOperator) -> tuple[torch.Tensor, torch.Tensor]:
    bank = one._network.prompts
    assert bank is not None
    return bank.tensors()


def test_rows_without_gradient_stay_bit_identical_with_their_moments() -> None:
    parameter, zeros = torch.randn(2, 4, 3), torch.zeros(2, 4, 3)
    moments = Moments(zeros.clone(), zeros.clone(), torch.zeros(2, 4, dtype=torch.int64))
    full = torch.randn(2, 4, 3)
    row_adam(parameter, full, moments, 0.1)
    before, first = parameter.clone(), moments.first.clone()
    gradient = torch.zeros(2, 4, 3)
    gradient[0, 2] = 1.0
    row_adam(parameter, gradient, moments, 0.1)
    moved = (parameter != before).any(2)
    assert moved.tolist() == [[False, False, True, False], [False] * 4]
    assert torch.equal(moments.first[1], first[1])
    assert moments.step.tolist() == [[1, 1, 2, 1], [1, 1, 1, 1]]
    # Where every row has a gradient it is Adam.
    one, other = torch.randn(5, 3), torch.nn.Parameter(torch.zeros(5, 3))
    with torch.no_grad():
        other.copy_(one)
    adam = torch.optim.Adam([other], lr=0.1)
    whole = Moments(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros((), dtype=torch.int64))
    for seed in range(4):
        other.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        adam.step()
        row_adam(one, other.grad, whole, 0.1)
    torch.testing.assert_close(one, other.detach())


def test_rows_move_by_their_share_of_the_rate() -> None:
    gradient = torch.ones(2, 3, 4)
    share = torch.tensor([[1.0, 0.25, 0.0], [0.5, 0.0, 1.0]])
    moments = Moments(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    parameter = torch.zeros(2, 3, 4)
    row_adam(parameter, gradient, moments, 0.1, share)
    torch.testing.assert_close(parameter, (-0.1 * share)[:, :, None].expand(2, 3, 4))
    assert moments.step.tolist() == [[1, 1, 0], [1, 0, 1]]


def test_a_prompt_that_strays_have_read_moves_less_than_the_one_that_most_have(path: str) -> None:
    one = operator(path, learn="prompts", learn_batch=10_000, alpha=0.0)
    one.process(stream(6, 6))
    windows, _ = one._network.windows(np.flatnonzero(one._network.keys.pending_S), 3)
    assert one._learner is not None
    lag = torch.zeros(*windows.after_BC.shape, 1, dtype=torch.float64)
    run = one._network.model.run(windows.time_BL, windows.type_BL, lag, after_BC=windows.after_BC)
    every = torch.arange(len(windows.after_BC))[:, None]
    read = run.chosen[0][every, windows.after_BC][windows.real_BC].flatten().bincount(minlength=12)
    before = prompts_of(one)[1]
    one._learner.learn(windows)
    moved = (prompts_of(one)[1] - before)[0].abs().amax((1, 2))
    # The first step of Adam is as long as the rate, whatever the gradient.
    torch.testing.assert_close(moved, 0.03 * read / read.max(), rtol=1e-3, atol=1e-6)
    assert len(set(read.tolist())) > 2


@pytest.mark.parametrize("query_events", [0, 5])
@pytest.mark.parametrize("backbone", ["s2p2", "nhp", "attnhp"])
def test_what_is_learned_from_reads_the_prompts_that_the_stream_has_read(
    backbone: str, query_events: int, tmp_path: Path
) -> None:
    path = network(tmp_path, backbone, pool=12, top_k=2, query_events=query_events)
    one = operator(path, learn="prompts", learn_batch=10_000)  # a window of 6 events
    said = table(one.process(stream(4, 16)))
    slots = np.arange(4)
    windows, _ = one._network.windows(slots, 3)
    lag = torch.zeros(*windows.after_BC.shape, 1, dtype=torch.float64)
    given = {"prompts": one._network.prompts, "before_B": windows.before_B, "after_BC": windows.after_BC}
    chosen = one._network.model.run(windows.time_BL, windows.type_BL, lag, heard=windows.heard, **given).chosen
    alone = one._network.model.run(windows.time_BL, windows.type_BL, lag, **given).chosen
    pool = max(chosen) - 1 if backbone == "attnhp" else 0  # the keys of the last layer, as the rows tell
    differs = False
    for slot in slots.tolist():
        mine = pc.equal(said.column("stream_id"), one._name_of[slot])
        wanted = said.filter(mine).column("prompt_ids_k").to_pylist()[-6:]
        # Attention layers see six events here and the whole window of each event there, so only the last query is the same.
        places = range(6) if backbone != "attnhp" else [5]
        assert [chosen[pool][slot, place].tolist() for place in places] == [wanted[place] for place in places]
        differs |= [alone[pool][slot, place].tolist() for place in places] != [wanted[place] for place in places]
    assert differs


@pytest.mark.heavy
@pytest.mark.parametrize("scope", ["prompts", "prompts+head", "all"])
def test_only_what_is_to_be_learned_moves_and_it_moves_at_every_step(path: str, scope: str) -> None:
    one, frozen = operator(path, learn=scope, learn_batch=10), load(path).state_dict()
    batch, moved, last = stream(4, 16), set[str](), prompts_of(one)
    for start in range(0, batch.num_rows, 8):
        version = one.version
        one.process(batch.slice(start, 8))
        now = prompts_of(one)
        assert torch.equal(now[0], last[0]) == torch.equal(now[1], last[1]) == (one.version == version)
        last = now
    assert one.version == (4 * 16 - 4) // 10
    for name, tensor in one._network.model.state_dict().items():
        if not torch.equal(tensor, frozen[name]) and not name.startswith("prompts."):
            moved.add(name)
    wanted = {"prompts": set(), "prompts+head": {"rate.linear.weight", "rate.linear.bias"}}
    assert moved == wanted[scope] if scope in wanted else len(moved) > 5
    assert one._learner is not None
    unread = one._learner._moments["prompts.value"].step[0] == 0
    assert unread.any() and not unread.all()
    assert torch.equal(last[0][0, unread], frozen["prompts.key"][0, unread])
    assert torch.equal(last[1][0, unread], frozen["prompts.value"][0, unread])
    assert not (last[1][0, ~unread] == frozen["prompts.value"][0, ~unread]).all((1, 2)).any()


@pytest.mark.heavy
def test_steps_go_by_event_time_where_events_are_few(path: str) -> None:
    batch, every_s = stream(4, 16), 70.0
    times = [time.timestamp() for time in batch.column("event_time").to_pylist()]
    options = {"learn": "prompts", "learn_batch": 6, "learn_interval_s": every_s}
    seen, versions, version, waiting, since = set[str](), [], 0, 0, 0.0
    for name, time in zip(batch.column("stream_id").to_pylist(), times, strict=True):  # what is asked for, row by row
        if name in seen:
            since = time if waiting == 0 else since
            waiting += 1
            if waiting == 6 or time >= since + every_s:
                version, waiting = version + 1, 0
        seen.add(name)
        versions.append(version)
    assert versions[-1] > (4 * 16 - 4) // 6
    whole = operator(path, **options)
    wanted = table(whole.process(batch))
    assert whole.version == version
    one, outputs = operator(path, **options), []
    for row in range(batch.num_rows):
        outputs += one.process(batch.slice(row, 1))
        assert one.version == versions[row]
        if row % 5 == 4:
            state, one = one.snapshot(), operator(path, **options)
            one.restore(state)
    assert table(outputs).equals(wanted)
    assert all(torch.equal(a, b) for a, b in zip(prompts_of(one), prompts_of(whole), strict=True))


def test_the_loss_of_a_repeated_window_falls(path: str) -> None:
    one = operator(path, learn="all", learn_batch=10_000, learning_rate=0.02, network_rate=0.02)
    one.process(stream(6, 6))
    slots = np.flatnonzero(one._network.keys.pending_S)
    windows, _ = one._network.windows(slots, 3)
    assert one._learner is not None
    prompts: PromptReader | None = one._network.prompts
    losses = []
    for _ in range(12):
        losses.append(float(one._learner.loss(windows, prompts).detach()))  # type: ignore[arg-type]
        one._learner.learn(windows)
    assert losses[-1] < losses[0] - 0.05


def test_a_step_that_is_not_finite_is_left_out_and_counted(path: str) -> None:
    one = operator(path, learn="prompts", learn_batch=6)
    with torch.no_grad():
        one._network.model.rate.linear.bias.fill_(torch.nan)  # type: ignore[union-attr]
    before = prompts_of(one)
    one.process(stream(3, 6))
    assert one.metrics()["skipped_steps"] == one.version == 2
    assert all(torch.equal(a, b) for a, b in zip(before, prompts_of(one), strict=True))


@pytest.mark.heavy
def test_interleaved_cut_and_restored_runs_end_with_the_same_bits(path: str) -> None:
    batch = stream(5, 14)
    whole = operator(path, learn="prompts", learn_batch=7, refresh_lag=2)
    wanted = table(whole.process(batch))
    rng, outputs = np.random.default_rng(0), []
    one = operator(path, learn="prompts", learn_batch=7, refresh_lag=2)
    start = 0
    while start < batch.num_rows:
        size = int(rng.integers(1, 12))
        outputs += one.process(batch.slice(start, size))
        start += size
        state = one.snapshot()  # as after kill -9: all that is left is the snapshot
        one = operator(path, learn="prompts", learn_batch=7, refresh_lag=2)
        one.restore(state)
    assert table(outputs).equals(wanted)
    assert all(torch.equal(a, b) for a, b in zip(prompts_of(one), prompts_of(whole), strict=True))


@pytest.mark.heavy
def test_with_refresh_lag_zero_states_are_those_of_the_present_weights(path: str) -> None:
    one = operator(path, learn="all", learn_batch=6, refresh_lag=0, window=20)
    batch = stream(3, 10)
    one.process(batch.slice(0, 20))
    names = sorted(one._streams)
    # Brute force: a fresh key is fed the same events under the weights as they are now.
    fresh = operator(path, learn="off", window=20)
    fresh._network.model.load_state_dict(one._network.model.state_dict())
    assert fresh._network.prompts is not None
    fresh._network.prompts.write(*prompts_of(one))
    fresh.process(batch.slice(0, 20))
    rest = batch.slice(20, 1)
    key = rest.column("stream_id")[0].as_py()
    assert key in names
    got, wanted = table(one.process(rest)), table(fresh.process(rest))
    for name in ("loglik", "pit", "next_dt_mean", "type_probs"):
        assert got.column(name).equals(wanted.column(name)), name
    stale = operator(path, learn="all", learn_batch=6, window=20)
    stale.process(batch.slice(0, 20))
    assert not table(stale.process(rest)).column("loglik").equals(wanted.column("loglik"))


def test_heads_of_prompts_are_learned_by_their_readers_and_restored(tmp_path: Path) -> None:
    path = network(tmp_path, pool=12, top_k=2, prompt_head=True)
    frozen, batch = load(path).state_dict(), stream(4, 12)
    options = {"learn": "prompts", "learn_batch": 9}
    whole, one, outputs = operator(path, **options), operator(path, **options), []
    wanted = table(whole.process(batch))
    for start in range(0, batch.num_rows, 11):
        outputs += one.process(batch.slice(start, 11))
        state, one = one.snapshot(), operator(path, **options)
        one.restore(state)
    assert table(outputs).equals(wanted)
    value, learned = prompts_of(one)[1][0], whole._learner
    assert torch.equal(value, prompts_of(whole)[1][0]) and learned is not None
    unread = learned._moments["prompts.value"].step[0] == 0
    assert unread.any() and torch.equal(value[unread], frozen["prompts.value"][0, unread])
    assert not frozen["prompts.value"][:, :, 2:].any() and value[~unread][:, 2:].abs().amax((1, 2)).min() > 0
    model = one._network.model
    assert all(torch.equal(t, frozen[n]) for n, t in model.state_dict().items() if not n.startswith("prompts."))


def counted(folder: Path, **changes: int) -> str:
    """Write a network whose file tells how often prompts were read."""
    model = load(network(folder, pool=12, top_k=2, prompt_head=True, **changes))
    assert model.prompts is not None and model.prompts.reads is not None
    model.prompts.reads[0] = torch.tensor([9, 3, 9, 9, 3, 9, 9, 9, 7, 9, 9, 9])
    save(model, folder / "counted.safetensors")
    return str(folder / "counted.safetensors")


@pytest.mark.parametrize("backbone", ["s2p2", "nhp"])
def test_a_part_of_every_query_is_what_all_keys_looked_like_in_the_last_step(backbone: str, tmp_path: Path) -> None:
    path, batch = network(tmp_path, backbone, pool=12, top_k=2, query_events=3), stream(4, 9)
    one = operator(path, learn="prompts", learn_batch=12, common_share=0.6, window=12)
    said = table(one.process(batch)).to_pylist()
    plain = table(operator(path, learn="prompts", learn_batch=12, window=12).process(batch)).to_pylist()
    model, bank = load(path), one._network.prompts
    assert bank is not None and bank.common is not None and model.prompts is not None
    # A slow obvious reference, row by row: tokens of each key, and at each step the mean of those of its scored events.
    seconds = [time.timestamp() for time in batch.column("event_time").to_pylist()]
    names, kinds = batch.column("stream_id").to_pylist(), batch.column("type").to_pylist()
    history: dict[str, list[tuple[float, int]]] = {}
    waiting: list[torch.Tensor] = []
    common: torch.Tensor | None = None
    key_MQ, stop, differs = model.prompts.key[0].detach(), batch.num_rows, 0
    for row, (name, second, kind) in enumerate(zip(names, seconds, kinds, strict=True)):
        mine = history.setdefault(name, [])
        mine.append((second, kind))
        time_1L = torch.tensor([[(then - mine[0][0]) / 60.0 for then, _ in mine]], dtype=torch.float64)
        token_LQ = model.query_tokens(time_1L, torch.tensor([[what for _, what in mine]]))[0]  # type: ignore[operator]
        keep = (1 - 1 / 3) ** torch.arange(len(mine)).flip(0)
        query_Q = model.query((keep[:, None] * token_LQ).sum(0) / keep.sum())  # type: ignore[operator]
        query_Q = query_Q if common is None else 0.4 * query_Q + 0.6 * common
        wanted = (unit(key_MQ) @ unit(query_Q)).topk(2).indices.tolist()
        assert said[row]["prompt_ids_k"] == wanted
        differs += common is not None and plain[row]["prompt_ids_k"] != wanted
        if row == stop:  # the second step moves the keys again
            break
        waiting += [token_LQ[-1]] if len(mine) > 1 else []
        if len(waiting) == 12:
            common, stop = model.query(torch.stack(waiting).mean(0)), row + 12  # type: ignore[operator]
            until = operator(path, learn="prompts", learn_batch=12, common_share=0.6, window=12)
            until.process(batch.slice(0, row + 1))
            assert until._network.prompts is not None and until._network.prompts.common is not None
            torch.testing.assert_close(until._network.prompts.common.query_JQ[0], common)
            key_MQ = prompts_of(until)[0][0]
    assert common is not None and differs


def test_new_behavior_is_given_the_prompts_that_were_read_least(tmp_path: Path) -> None:
    path, before = counted(tmp_path), load(counted(tmp_path)).state_dict()
    for novelty, moved in ((0.999, [1, 4]), (1e-6, [])):
        one = operator(path, learn="prompts", learn_batch=10_000, common_share=0.5, novelty=novelty)
        one.process(stream(6, 6))
        windows, _ = one._network.windows(np.flatnonzero(one._network.keys.pending_S), 3)
        learner, bank = one._learner, one._network.prompts
        assert learner is not None and bank is not None
        for name in ("prompts.key", "prompts.value"):
            for tensor in learner._moments[name]:
                tensor.fill_(5)
        learner._meet(windows)
        assert bank.common is not None
        key_MQ, value_MZD = (tensor[0] for tensor in prompts_of(one))
        still = [row for row in range(12) if row not in moved]
        assert torch.equal(key_MQ[still], before["prompts.key"][0, still])
        assert torch.equal(value_MZD[still], before["prompts.value"][0, still])
        query_Q = unit(bank.common.query_JQ[0])
        lag = torch.zeros(*windows.after_BC.shape, 1, dtype=torch.float64)
        model, every = one._network.model, torch.arange(len(windows.after_BC))[:, None]

        def read(key_JMQ: torch.Tensor, one: PromptTPPOperator = one, common: Common = bank.common) -> torch.Tensor:
            given = {"heard": windows.heard, "after_BC": windows.after_BC, "before_B": windows.before_B}  # noqa: B023
            reader = TensorPrompts(key_JMQ, before["prompts.value"], 2, common=common)
            chosen = model.run(windows.time_BL, windows.type_BL, lag, prompts=reader, **given).chosen[0]  # noqa: B023
            return chosen[every, windows.after_BC][windows.real_BC].flatten().bincount(minlength=12)  # noqa: B023

        if moved:
            assert (unit(before["prompts.key"][0]) @ query_Q).max() < 0.999
            size = before["prompts.key"][0].norm(dim=1).mean()
            first = read(before["prompts.key"])
            value_ZD = (first[:, None, None] * before["prompts.value"][0]).sum(0) / first.sum()
            for row in moved:
                torch.testing.assert_close(key_MQ[row], size * query_Q)
                torch.testing.assert_close(value_MZD[row], value_ZD)
        counts = before["prompts.reads"][0].clone()
        counts[moved] = 0
        assert torch.equal(learner._reads_M, counts + read(key_MQ[None]))
        for name in ("prompts.key", "prompts.value"):
            for tensor in learner._moments[name]:
                assert bool((tensor[0, still] == 5).all()) and not tensor[0, moved].any()


def test_what_all_keys_look_like_is_restored_with_the_same_bits(tmp_path: Path) -> None:
    path, batch = counted(tmp_path), stream(5, 14)
    options = {"learn": "prompts", "learn_batch": 7, "common_share": 0.6, "novelty": 0.5}
    whole, one, outputs = operator(path, **options), operator(path, **options), []
    wanted = table(whole.process(batch))
    for start in range(0, batch.num_rows, 9):
        outputs += one.process(batch.slice(start, 9))
        state, one = one.snapshot(), operator(path, **options)
        one.restore(state)
    assert table(outputs).equals(wanted)
    assert all(torch.equal(a, b) for a, b in zip(prompts_of(one), prompts_of(whole), strict=True))
    assert one._learner is not None and whole._learner is not None
    assert torch.equal(one._learner._reads_M, whole._learner._reads_M)
    without = operator(path, **(options | {"novelty": 0.0}))
    without.process(batch)
    assert not torch.equal(prompts_of(without)[0], prompts_of(whole)[0])  # some were given away


def test_evicted_keys_are_not_learned_from_and_are_counted(path: str) -> None:
    one = operator(path, learn="prompts", learn_batch=1000, max_streams=3)
    one.process(stream(8, 6))
    metrics = one.metrics()
    assert metrics["unlearned"] > 0
    pending = int(one._network.keys.pending_S.sum())
    assert metrics["scored"] == metrics["unlearned"] + pending


def test_prompts_that_are_never_read_are_reported(path: str) -> None:
    one = operator(path)
    one.process(stream(4, 10))
    bank = one._network.prompts
    assert bank is not None
    assert bank.dead(10) == int((bank.reads_JM == 0).sum()) > 0
    assert bank.dead(10_000) == 0 == one.metrics()["dead_prompts"]
    assert int(bank.reads_JM.sum()) == 2 * 40


def test_loading_a_checkpoint_changes_every_tensor(path: str) -> None:
    fresh = build_model(load(path).config, seed=99)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    fresh.load_state_dict(load(path).state_dict())
    constant = {"first", "types.weight", "query_center", "query_map"}  # start as zeros or ones, or hold a row of zeros
    same = [name for name, tensor in fresh.state_dict().items() if torch.equal(tensor, before[name])]
    assert all(name in constant or "log_rate" in name or "skip" in name or "norm" in name for name in same)


def test_outputs_are_one_schema_for_all_states(path: str, tmp_path: Path) -> None:
    one = operator(path)
    (out,) = one.process(stream(2, 3))
    assert out.schema.equals(one.output_schema, check_metadata=True)
    assert isinstance(out, pa.RecordBatch)
