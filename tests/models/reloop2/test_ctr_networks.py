"""What holds for every click-through-rate network, and the pieces that the golden files do not reach."""

import pytest
import torch
import torch.nn.functional as F
from ctr_world import CONFIGS, FEATURES, columns

from connectors.errors import ConfigError
from models.reloop2.config import CtrConfig, DINConfig, FiBiNETConfig, SDIMConfig
from models.reloop2.feature_map import Feature, FeatureMap
from models.reloop2.model import build_model
from models.reloop2.sdim import hash_interest, signatures


def shaken(config: CtrConfig, seed: int = 0):
    """Build a network whose weights are all of the same order, so that every part of it matters."""
    model = build_model(config, FEATURES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            if "embedding_layers" in name and "age" not in name:
                parameter[0] = 0
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logit_is_of_the_hidden_vector_and_every_feature_matters(name: str):
    model, drawn = shaken(CONFIGS[name]), columns(32)
    hidden_BD, logit_B = model(drawn)
    assert hidden_BD.shape == (32, model.hidden_dim) and logit_B.shape == (32,)
    assert hidden_BD.isfinite().all() and logit_B.isfinite().all()
    for feature in FEATURES:
        changed = dict(drawn)
        column = drawn[feature.name]
        changed[feature.name] = column + 1.5 if feature.kind == "numeric" else (column * 3 + 1) % feature.vocab_size
        assert not torch.equal(model(changed).logit_B, logit_B), feature.name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_does_not_depend_on_the_others(name: str):
    model, drawn = shaken(CONFIGS[name]), columns(16)
    hidden_BD, logit_B = model(drawn)
    alone = model({key: column[5:6] for key, column in drawn.items()})
    torch.testing.assert_close(alone.hidden_BD[0], hidden_BD[5], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.logit_B[0], logit_B[5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_longer_padding_changes_nothing(name: str):
    model, drawn = shaken(CONFIGS[name]), columns(16)
    longer = {key: F.pad(column, (3, 0)) if column.ndim == 2 else column for key, column in drawn.items()}
    torch.testing.assert_close(model(longer).logit_B, model(drawn).logit_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.heavy
def test_twenty_rows_are_learned(name: str):
    torch.manual_seed(0)
    model, drawn = build_model(CONFIGS[name], FEATURES, seed=1).train(), columns(20, seed=1)
    label_B = (torch.arange(20) % 3 == 0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model(drawn).logit_B, label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    tables = [p for key, p in model.named_parameters() if "embedding_layers" in key and "age" not in key]
    assert all(table[0].eq(0).all() for table in tables), "padding stays zero"


def test_a_seed_fixes_the_weights_and_leaves_the_callers_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = build_model(CONFIGS["sdim"], FEATURES, seed=5).state_dict()
    assert torch.equal(torch.rand(4), expected)
    second, other = (build_model(CONFIGS["sdim"], FEATURES, seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["random_rotations"], other["random_rotations"])


def test_histories_share_the_table_of_their_targets():
    model = build_model(CONFIGS["dcnv2"], FEATURES)
    tables = [key for key in model.state_dict() if "embedding_layers" in key]
    assert tables == [f"embedding_layer.embedding_layers.{name}.weight" for name in ("type", "item_id", "cate_id", "age")]
    first_order = [key for key in build_model(CONFIGS["deepfm"], FEATURES).state_dict() if "lr_layer.embedding_layer" in key]
    assert len(first_order) == len(FEATURES), "weights of the first order are not shared"


def test_pooled_history_is_the_mean_of_its_entries():
    embedding = shaken(CONFIGS["dcnv2"]).embedding_layer
    table = embedding.embedding_layers["item_id"].weight
    pooled = embedding.pooled("item_history", torch.tensor([[0, 0, 0, 3, 4, 3], [0] * 6]))
    torch.testing.assert_close(pooled, torch.stack([(2 * table[3] + table[4]) / 3, torch.zeros(4)]))


def test_signatures_follow_the_collision_law():
    generator = torch.Generator().manual_seed(0)
    angle = torch.tensor(0.7)
    pair = torch.stack([torch.tensor([1.0, 0.0, 0.0]), torch.tensor([angle.cos(), angle.sin(), 0.0])])
    hashes, bits = 20_000, 3
    found = signatures(pair, torch.randn(3, hashes, bits, generator=generator))
    expected = float(1 - angle / torch.pi) ** bits
    assert abs(float((found[0] == found[1]).double().mean()) - expected) < 3 * (expected * (1 - expected) / hashes) ** 0.5


def test_interest_forgets_the_order_and_sums_what_collides():
    generator = torch.Generator().manual_seed(0)
    history_BTD, target_BD = torch.randn(2, 9, 4, generator=generator), torch.randn(2, 4, generator=generator)
    rotations = torch.randn(4, 5, 2, generator=generator)
    held_BT = torch.arange(9) >= torch.tensor([[0], [4]])
    codes_BTH, target_BH = signatures(history_BTD, rotations), signatures(target_BD, rotations)
    for l2_norm in (False, True):
        wanted = torch.zeros(2, 4)
        for b in range(2):
            for h in range(5):
                hits = [history_BTD[b, t] for t in range(9) if held_BT[b, t] and codes_BTH[b, t, h] == target_BH[b, h]]
                total = sum(hits, torch.zeros(4))
                wanted[b] += (F.normalize(total, dim=0) if l2_norm else total) / 5
        found = hash_interest(target_BH, codes_BTH, history_BTD, held_BT, l2_norm=l2_norm)
        torch.testing.assert_close(found, wanted)
        order = torch.randperm(9, generator=generator)
        shuffled = hash_interest(target_BH, codes_BTH[:, order], history_BTD[:, order], held_BT[:, order], l2_norm=l2_norm)
        torch.testing.assert_close(shuffled, found)


def test_the_published_short_window_loses_the_oldest_entry_of_short_histories_and_ours_does_not():
    small = {"embedding_dim": 4, "hidden_units": (8,), "batch_norm": False, "dropout": 0.0, "attention_dim": 8}
    drawn = {key: column[:1] for key, column in columns(4).items()}
    history = torch.tensor([[0, 0, 0, 0, 3, 5]])
    drawn |= {"item_history": history, "cate_history": history % 7}
    for compat, window, changes in (("paper", 4, True), ("fuxictr", 5, False)):
        model = shaken(SDIMConfig(**small, compat=compat, short_seq_len=window))
        target = model.embedding_layer.concat(drawn, model.config.target_fields)
        held = drawn["item_history"] != 0
        entries = model.embedding_layer.concat(drawn, model.config.sequence_fields)
        other = entries.clone()
        other[0, 4] += 1.0
        same = torch.equal(model._short(target, entries, held), model._short(target, other, held))
        assert same is not changes, compat


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: build_model(DINConfig(target_fields=(("brand",),), sequence_fields=(("item_history",),)), FEATURES),
            "'brand'",
        ),
        (lambda: build_model(SDIMConfig(target_fields=("item_id",), sequence_fields=("cate_id",)), FEATURES), "no sequence"),
        (
            lambda: build_model(
                DINConfig(),
                FeatureMap((*FEATURES.features[1:5], Feature(name="cate_history", kind="sequence", vocab_size=7, max_len=9))),
            ),
            r"max_len \[6, 9\]; make them equal",
        ),
        (lambda: build_model(FiBiNETConfig(), FeatureMap(FEATURES.features[:1])), r"only \['type'\]"),
    ],
)
def test_networks_that_the_features_do_not_allow_are_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()
