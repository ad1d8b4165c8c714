"""Golden: the causal network, the published read-outs with their faults, gradients, thinning, base networks, keys."""

from pathlib import Path

import prompttpp_cases
import pytest
import torch
from golden_cases import assert_complete, golden, read_json, read_npz
from prompttpp_cases import PromptCase, assert_close

from models.prompttpp.checkpoint import infer_config, load_official, official_state
from models.prompttpp.integral import integrate, shares
from models.prompttpp.official import Readout, official_likelihood, official_thinning
from models.weight_files import read_safetensors

READOUTS: tuple[Readout, ...] = ("official", "rowwise", "aligned")


def test_every_file_belongs_to_a_kind_and_every_kind_has_a_case() -> None:
    assert_complete("prompttpp", prompttpp_cases.KINDS)


@golden("prompttpp", ".npz", *prompttpp_cases.CAUSAL)
def test_causal_network_equals_the_float64_reference(path: Path) -> None:
    case = PromptCase(path, torch.float64)
    layers = case.model.config.layers
    total = []
    for row, (time, kind) in enumerate(case.sequences()):
        gap = time.diff(dim=1)
        run = case.model.run(time[:, :-1], kind[:, :-1], gap[:, :, None] * shares(case.samples, "trapezoid"))
        name = f"causal.{row}."
        rate = run.rate_BLGK[0]
        assert_close(run.hidden_BLGD[0], case.arrays[name + "states"], "states", 1e-9)
        assert_close(rate, case.arrays[name + "lambda"], "lambda", 1e-9)
        event = rate[:, -1].gather(1, kind[0, 1:, None])[:, 0].log()
        assert_close(event, case.arrays[name + "event_ll"], "event_ll", 1e-9)
        trapezoid = integrate(rate.sum(2), gap[0], "trapezoid")
        assert_close(trapezoid, case.arrays[name + "integral_trapezoid"], "integral_trapezoid", 1e-9)
        assert_close(integrate(rate.sum(2), gap[0], "mean"), case.arrays[name + "integral_mean"], "integral_mean", 1e-9)
        for pool, index in run.chosen.items():
            head, layer = divmod(pool // 2, layers)
            wanted = case.tensor(f"{name}idx_{'kv'[pool % 2]}.{head}.{layer}")
            assert torch.equal(index[0], wanted.to(torch.int64)), f"prompts of row {row}, pool {pool}"
        total.append(float((event - trapezoid).detach().sum()))
    assert_close(
        torch.tensor(total, dtype=torch.float64), case.arrays["causal.loglik_per_sequence"], "loglik_per_sequence", 1e-9
    )


@golden("prompttpp", ".npz", *prompttpp_cases.CAUSAL)
def test_causal_network_in_float32_stays_within_the_tolerance(path: Path) -> None:
    case = PromptCase(path)
    for row, (time, kind) in enumerate(case.sequences()):
        lag = time.diff(dim=1)[:, :, None] * shares(case.samples, "trapezoid")
        assert_close(
            case.model.run(time[:, :-1], kind[:, :-1], lag).rate_BLGK[0], case.arrays[f"causal.{row}.lambda"], "lambda"
        )


@pytest.mark.parametrize("readout", READOUTS)
@golden("prompttpp", ".npz", *prompttpp_cases.OFFICIAL)
def test_compat_equals_the_published_code(path: Path, readout: Readout) -> None:
    case = PromptCase(path)
    found = official_likelihood(case.model, case.batch, readout, case.samples)
    wanted = {name.removeprefix(f"{readout}."): array for name, array in case.arrays.items() if name.startswith(f"{readout}.")}
    assert_close(found.passed.state_BLD, wanted["enc_out"], "enc_out")
    assert_close(found.rate_BLK, wanted["lambda_at_event"], "lambda_at_event")
    assert_close(found.sample_BLG, wanted["sample_times"], "sample_times")
    assert_close(found.rate_BLGK, wanted["lambda_t_sample"], "lambda_t_sample")
    assert_close(found.event_BL, wanted["event_ll"], "event_ll")
    assert_close(found.integral_BL, wanted["non_event_ll"], "non_event_ll")
    assert_close(found.key_term, wanted["prompt_key_loss"], "prompt_key_loss")
    assert_close(found.loss, wanted["loss"], "loss")
    assert found.events == int(wanted["num_events"])
    for number in range(case.model.config.heads * case.model.config.layers):
        place = "{}.{}".format(*divmod(number, case.model.config.layers))
        assert_close(found.passed.mixed[number], wanted[f"attn_out.{place}"], f"attn_out {place}")
        for side in "kv":
            what = f"{side} {place}"
            assert_close(found.passed.similarity[side, number], wanted[f"similarity_{side}.{place}"], f"similarity {what}")
            assert_close(found.passed.key_term[side, number], wanted[f"reduce_sim_{side}.{place}"], f"reduce_sim {what}")
            index = torch.from_numpy(wanted[f"prompt_idx_{side}.{place}"]).long()
            if readout == "official":  # votes that tie are broken in no stated order
                votes = found.passed.similarity[side, number].topk(index.shape[1]).indices.unique(return_counts=True)[1]
                if len(votes.unique()) < len(votes):
                    continue
            assert torch.equal(found.passed.index[side, number], index), f"prompts {what}"


@golden("prompttpp", ".npz", *prompttpp_cases.GRADIENT)
def test_gradients_of_the_published_loss(path: Path) -> None:
    case = PromptCase(path)
    model, layers = case.model, case.model.config.layers
    official_likelihood(model, case.batch, "aligned", case.samples).loss.backward()
    assert model.prompts is not None
    checked = 0
    for name, wanted in case.arrays.items():
        if not name.startswith("aligned.grad."):
            continue
        parameter = name.removeprefix("aligned.grad.")
        if parameter.startswith("heads."):
            _, head, layer, _, pool, part = parameter.split(".")
            number = 2 * (int(head) * layers + int(layer)) + (pool == "prompt_pool_v")
            grown = model.prompts.key.grad if part == "prompt_key" else model.prompts.value.grad
            assert grown is not None
            gradient = grown[number]
        else:
            table = model.types.weight if parameter.startswith("layer_type_emb") else model.rate.linear.weight
            assert table.grad is not None
            gradient = table.grad
        assert_close(gradient, wanted, name, 1e-4)
        checked += 1
    assert checked


@golden("prompttpp", ".npz", *prompttpp_cases.THINNING)
def test_published_prediction_with_its_faults(path: Path) -> None:
    case = PromptCase(path)
    settings = case.config["thinning"]
    found = official_thinning(
        case.model,
        case.batch,
        "official",
        unit_exp_BLX=case.tensor("thin.unit_exp"),
        uniform_BLVX=case.tensor("thin.unif"),
        over_sample_rate=settings["over_sample_rate"],
        boundary=settings["num_samples_boundary"],
        dtime_max=settings["dtime_max"],
    )
    assert_close(found.bound_BL, case.arrays["thin.bound"], "bound")
    assert_close(found.total_BLX, case.arrays["thin.total_intensity_at_draws"], "total_intensity_at_draws")
    assert_close(found.accepted_BLV, case.arrays["thin.accepted_dtimes"], "accepted_dtimes")
    assert_close(found.gap_BL, case.arrays["thin.dtimes_pred"], "dtimes_pred")
    assert torch.equal(found.type_BL, case.tensor("thin.types_pred").long())


@pytest.mark.parametrize("name", ["NHP", "THP", "AttNHP"])
@golden("prompttpp", ".npz", *prompttpp_cases.BASES)
def test_base_networks_equal_easytpp(path: Path, name: str) -> None:
    arrays = read_npz(path)
    model = load_official(path.with_name(f"base_{name}_state.safetensors"))
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    real = tensors["non_pad_mask"][:, 1:]
    gap = tensors["time_delta_seq"][:, 1:].double()
    samples = arrays[f"{name}.lambdas_loss_samples"].shape[2]
    lag = gap[:, :, None] * shares(samples, "trapezoid")
    run = model.run(tensors["time_seq"][:, :-1].double(), tensors["event_seq"][:, :-1], lag)
    assert_close(run.rate_BLGK[:, :, -1][real], tensors[f"{name}.lambda_at_event"][real].numpy(), "lambda_at_event")
    assert_close(run.rate_BLGK[real], tensors[f"{name}.lambdas_loss_samples"][real].numpy(), "lambdas_loss_samples")
    target = tensors["event_seq"][:, 1:].clamp_max(model.config.types - 1)
    event = run.rate_BLGK[:, :, -1].gather(2, target[:, :, None])[:, :, 0].log() * real
    integral = integrate(run.rate_BLGK.sum(3), gap.float(), "trapezoid") * real
    assert_close(event, arrays[f"{name}.event_ll"] * real.numpy(), "event_ll")
    assert_close(integral, arrays[f"{name}.non_event_ll"] * real.numpy(), "non_event_ll")
    assert_close(integral.sum() - event.sum(), arrays[f"{name}.loss"], "loss")
    if f"{name}.left_hiddens" in arrays:
        assert_close(run.hidden_BLGD[:, :, -1][real], tensors[f"{name}.left_hiddens"][real].numpy(), "left_hiddens")


@golden("prompttpp", ".json", *prompttpp_cases.KEYS)
def test_keys_of_the_default_configuration_load_with_and_without_aliases(path: Path) -> None:
    content = read_json(path)
    shapes = {name: entry["shape"] for name, entry in content["keys_after_first_forward"].items()}
    generator = torch.Generator().manual_seed(0)
    full = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in full:
        if name.endswith(".prompt"):
            full[name] = full[name.removesuffix("prompt") + "type_prompt"]
        if name.startswith("inten_linear."):
            full[name] = full[name.replace("inten_linear.", "layer_intensity.0.")]
    fresh = {name: tensor for name, tensor in full.items() if not name.endswith(".prompt")}
    for state in (full, fresh):
        config = infer_config(state, "keys")
        assert (config.types, config.hidden, config.time_dim, config.heads, config.layers) == (16, 32, 16, 2, 2)
        own = official_state(config, state, "keys")
        assert torch.equal(own["prompts.key"][3], full["heads.0.1.self_attn.prompt_pool_v.prompt_key"])


@golden("prompttpp", ".json", *prompttpp_cases.CONFIG)
def test_both_sets_of_keys_of_a_case_give_the_same_network(path: Path) -> None:
    config = read_json(path)
    state_path = path.with_name(path.name.replace("_config.json", "_state.safetensors"))
    stored = read_safetensors(state_path)[0]
    inferred = infer_config(stored, "case", top_k=config["top_k"])
    fresh = {name: tensor for name, tensor in stored.items() if not name.endswith((".prompt", "inten_linear.weight"))}
    assert len(fresh) < len(stored)
    one, other = official_state(inferred, stored, "case"), official_state(inferred, fresh, "case")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
