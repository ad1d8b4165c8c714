"""Golden: every intermediate of the released networks, on either axis of the encoder, and one training step."""

from pathlib import Path

import memprompttss_cases as cases
import numpy as np
import pytest
import torch
from golden_cases import assert_complete, golden, read_json
from memprompttss_cases import Case, close, flat, read_case

from models.memprompttss.checkpoint import (
    load_network,
    load_prompttss,
    own_names,
    perseus_config,
    prompttss_config,
    release_names,
)
from models.memprompttss.granularity import coarse_states
from models.memprompttss.layers import normalize, patches
from models.memprompttss.losses import window_losses
from models.memprompttss.metrics import scores
from models.memprompttss.model import MemPromptTSS
from models.memprompttss.prompttss import PromptTSS
from models.memprompttss.sampling import contexts, official_centers


def test_every_file_belongs_to_a_kind_and_every_kind_has_a_case() -> None:
    assert_complete("memprompttss", cases.KINDS)


@golden("memprompttss", ".npz", *cases.PERSEUS)
def test_tokens_of_the_first_window_are_the_recorded_ones(path: Path) -> None:
    case = read_case(path)
    arrays, x_BTC = case.arrays, case.windows()[:, 0]
    for reading in case.readings:
        encoder = case.network(reading).ts_encoder
        cut_BPI = patches(normalize(x_BTC), encoder.patch, encoder.patch_stride)
        for name, got in (
            ("w0_revin", normalize(x_BTC)),
            ("w0_patches", cut_BPI),
            ("w0_embedded", encoder.input_layer(cut_BPI)),
            (f"w0_ts_tokens_{reading}", encoder(x_BTC)),
        ):
            close(got, arrays[name], f"{reading} {name}")
        if reading == "batch" and "w0_ts_tokens_batch_B1" in arrays:
            one_by_one = torch.cat([encoder(x_BTC[b : b + 1]) for b in range(len(x_BTC))])
            close(one_by_one, arrays["w0_ts_tokens_batch_B1"], "one window at a time")
            close(encoder(x_BTC, alone=True), arrays["w0_ts_tokens_batch_B1"], "all at once, each as if alone")


def memory(case: Case, network: MemPromptTSS, iteration: int) -> torch.Tensor:
    """Return the memory tokens of an iteration [B, P, D]."""
    around = contexts(case.arrays["subseq_x"], case.arrays["prompt_idx"][iteration], case.geometry["context_len"])
    tokens = network.remember(flat(case.prompts(iteration)), around.flatten(0, 1))
    return tokens.view(*around.shape[:2], -1)


@golden("memprompttss", ".npz", *cases.PERSEUS)
def test_prompts_become_the_recorded_memory_tokens(path: Path) -> None:
    case = read_case(path)
    arrays, classes = case.arrays, case.config["config"]["K"]
    for reading in case.readings:
        network = case.network(reading)
        for r in range(case.geometry["R"]):
            given = case.prompts(r)
            # A prompt about a boundary has no label: whatever stands there does not count.
            is_label = (given.kind == 0)[..., None]
            close(given.labels(classes), arrays["label_vec"][r] * is_label, "label vectors")
            token = network.prompt_encoder(given.kind, given.labels(classes), given.boundary, given.incorrect)
            close(token, arrays["prompt_tokens"][r][:, :, 0], f"{reading} prompt tokens {r}")
            close(memory(case, network, r), arrays[f"memory_tokens_{reading}"][r], f"{reading} memory tokens {r}")
        around = contexts(arrays["subseq_x"], arrays["prompt_idx"][0], case.geometry["context_len"]).flatten(0, 1)
        if f"ctx_tokens_r0_{reading}" in arrays:
            close(network.ts_encoder(around), arrays[f"ctx_tokens_r0_{reading}"], f"{reading} context tokens")


@golden("memprompttss", ".npz", *cases.PERSEUS)
def test_logits_with_a_growing_bank_are_the_recorded_ones(path: Path) -> None:
    case = read_case(path)
    arrays, windows_BWTC = case.arrays, case.windows()
    B, W = windows_BWTC.shape[:2]
    of_W = torch.arange(B).repeat_interleave(W)
    for reading in case.readings:
        network = case.network(reading)
        # As released, windows of one number go through the encoder together.
        tokens_BWPD = torch.stack([network.ts_encoder(windows_BWTC[:, w]) for w in range(W)], dim=1)
        bank_BND = arrays[f"memory_tokens_{reading}"].new_zeros(B, 0, network.config.width)
        empty = network.decode(tokens_BWPD[:, 0], bank_BND)
        close(empty, arrays[f"w0_logits_empty_bank_{reading}"], f"{reading} empty bank")
        for r in range(case.geometry["R"]):
            bank_BND = torch.cat([bank_BND, arrays[f"memory_tokens_{reading}"][r]], dim=1)
            wanted = arrays[f"logits_{reading}"][r]
            one_by_one = torch.stack([network.decode(tokens_BWPD[:, w], bank_BND) for w in range(W)], dim=1)
            close(one_by_one, wanted, f"{reading} logits {r}")
            together = network.decode(tokens_BWPD.flatten(0, 1), bank_BND, None, of_W).view_as(wanted)
            close(together, wanted, f"{reading} logits {r}, all windows at once")
            there_BN = torch.arange(bank_BND.shape[1] + 3).expand(B, -1) < bank_BND.shape[1]
            padded = torch.nn.functional.pad(bank_BND, (0, 0, 0, 3), value=9.0)
            masked = network.decode(tokens_BWPD.flatten(0, 1), padded, there_BN, of_W).view_as(wanted)
            close(masked, wanted, f"{reading} logits {r}, masked bank")


@golden("memprompttss", ".npz", *cases.PERSEUS, r"dec_block0_X_.+")
def test_every_block_of_the_decoder_gives_the_recorded_tokens(path: Path) -> None:
    case = read_case(path)
    arrays = case.arrays
    for reading in (reading for reading in case.readings if f"dec_block0_X_{reading}" in arrays):
        network = case.network(reading)
        x_BPD = arrays[f"w0_ts_tokens_{reading}"]
        m_BND = arrays[f"memory_tokens_{reading}"].movedim(0, 1).flatten(1, 2)
        for i, block in enumerate(network.state_decoder.blocks):
            x_BPD, m_BND = block(x_BPD, m_BND, None, None)
            close(x_BPD, arrays[f"dec_block{i}_X_{reading}"], f"{reading} block {i} X")
            close(m_BND, arrays[f"dec_block{i}_M_{reading}"], f"{reading} block {i} M")
        patch_BPK = network.state_decoder.head(network.state_decoder.ln_head(x_BPD))
        close(patch_BPK, arrays[f"dec_patch_logits_{reading}"], f"{reading} patch logits")
        close(network.cover_TP @ patch_BPK, arrays[f"dec_logits_{reading}"], f"{reading} logits")


@golden("memprompttss", ".npz", *cases.PERSEUS, r"train_loss_.+")
def test_a_training_step_reproduces_loss_gradient_and_weights(path: Path) -> None:
    case = read_case(path)
    arrays, windows_BWTC = case.arrays, case.windows()
    for reading in case.readings:
        network = case.network(reading).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)
        bank_BND = memory(case, network, 0)
        logits = torch.stack([network(windows_BWTC[:, w], bank_BND) for w in range(windows_BWTC.shape[1])], dim=1)
        losses_W = window_losses(logits, case.states())
        close(losses_W, arrays[f"train_window_losses_{reading}"], f"{reading} losses")
        close(losses_W.mean(), arrays[f"train_loss_{reading}"], f"{reading} loss")
        losses_W.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        close(norm, arrays[f"train_grad_norm_{reading}"], f"{reading} gradient norm")
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        optimizer.step()
        for prefix, found in (("grad_", gradients), ("step1_", network.state_dict())):
            named = found | (release_names(found) if reading == "official" else {})
            recorded = [name for name in arrays if name.startswith(f"{prefix}{reading}/")]
            assert recorded, f"{prefix}{reading}"
            for name in recorded:
                close(named[name.partition("/")[2]], arrays[name], name)


@golden("memprompttss", ".npz", *cases.PROMPTTSS)
def test_the_predecessor_gives_the_recorded_logits(path: Path) -> None:
    case = read_case(path)
    arrays, x_BTC, classes = case.arrays, case.arrays["x"], case.config["config"]["K"]
    B, T = x_BTC.shape[:2]
    label_BTL, boundary_BT = torch.zeros(B, T, 2 * classes), torch.full((B, T), -1)
    for prompt in case.config["prompts"]:
        kind, *aspect, at = prompt["key"]
        for b, said in enumerate(prompt["value"]):
            if kind == "boundary":
                boundary_BT[b, at] = int(said)
            else:
                places = [int(k) + classes * (aspect == ["incorrect"]) for k in np.atleast_1d(said)]
                label_BTL[b, at, places] = 1.0
    for reading in ("batch", "time"):
        network = load_prompttss(case.weights, case.settings(reading))
        close(network.prompt_encoder(label_BTL, boundary_BT), arrays["prompt_embedding"], "prompts")
        close(network.encode(x_BTC), arrays[f"ts_tokens_{reading}"], f"{reading} tokens")
        close(network(x_BTC, label_BTL, boundary_BT), arrays[f"logits_{reading}"], f"{reading} logits")
        if reading == "batch":
            one_by_one = torch.cat([network.encode(x_BTC[b : b + 1]) for b in range(B)])
            close(one_by_one, arrays["ts_tokens_batch_B1"], "one window at a time")
            silent = network(x_BTC, torch.zeros_like(label_BTL), torch.full_like(boundary_BT, -1))
            close(silent, arrays["logits_no_prompts"], "no prompts")
            prompt_BTD, series_BPD = arrays["prompt_embedding"], arrays["ts_tokens_batch"]
            for i, block in enumerate(network.state_decoder.decoder_blocks):
                place_TD = network.state_decoder.positional_encoding[0]
                prompt_BTD, series_BPD = block(prompt_BTD, series_BPD, place_TD, first=i == 0)
                close(prompt_BTD, arrays[f"dec_block{i}_prompt"], f"block {i} prompt")
                close(series_BPD, arrays[f"dec_block{i}_series"], f"block {i} series")


@golden("memprompttss", ".json", *cases.KEYS)
def test_official_keys_fit_the_networks(path: Path) -> None:
    layouts = read_json(path)
    for name, layout in layouts.items():
        if "keys" not in layout:  # described by a note
            continue
        base = layouts[layout["differs_from"]]["keys"] if "differs_from" in layout else {}
        shapes = {key: tuple(shape) for key, (shape, _) in (base | layout["keys"]).items()}
        tensors = own_names({f"module.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()})
        settings = {"heads": layout["config"]["n_heads"], "activation": layout["config"]["activation"]}
        with torch.device("meta"):
            is_first = name.startswith("PromptTSS")
            network = (
                PromptTSS(prompttss_config(tensors, settings)) if is_first else MemPromptTSS(perseus_config(tensors, settings))
            )
        assert {key: tuple(t.shape) for key, t in network.state_dict().items()} == {
            key: tuple(t.shape) for key, t in tensors.items()
        }, name
        config = network.config
        assert (config.channels, config.classes, config.width) == tuple(layout["config"][k] for k in ("C", "K", "d_model"))
        if "n_params" in layout:
            assert sum(p.numel() for p in network.parameters()) == layout["n_params"], name


@golden("memprompttss", ".json", *cases.METRICS)
def test_metrics_are_those_of_scikit_learn(path: Path) -> None:
    given = read_json(path)["metrics"]
    found = scores(np.array(given["y_true"]), np.array(given["y_pred"]))
    for name, wanted in given["expect"].items():
        assert found[name] == pytest.approx(wanted, abs=1e-12), name


@golden("memprompttss", ".json", *cases.MERGE)
def test_coarse_states_are_the_recorded_groups(path: Path) -> None:
    given = read_json(path)["merge_labels"]
    for name, wanted in given["expect"].items():
        group, level = (int(part) for part in name.removeprefix("group").split("_level"))
        found = coarse_states(given["first_seen_sequence"], group, level)
        assert {str(label): state for label, state in found.items()} == wanted, name


@golden("memprompttss", ".json", *cases.PLACEMENT)
def test_official_placement_is_repeated(path: Path) -> None:
    for one in read_json(path)["placement_official"]:
        found = official_centers(one["T"], one["S"], one["W"], one["hit"], one["P"], one["T_ctx"])
        assert found == one["prompt_idx"], one


def test_weights_of_the_release_load_as_pytorch_files_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = Path(__file__).parent
    case = read_case(folder / "perseus_tiny_io.npz")
    tensors = load_file(case.weights)
    file = tmp_path / "checkpoint.pth"
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, file)
    loaded = load_network(file, case.settings("time"))
    for name, tensor in case.network("time").state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
