"""Training: it learns, it stops, a seed fixes it; incremental training follows a shift; ``train`` writes what it says."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_previews import check_previews

from connectors.errors import ConfigError, DeviceError, StreambankError
from models.reloop2 import checkpoint
from models.reloop2.config import DCNv2Config
from models.reloop2.drifting_clicks import DriftConfig, make_stream
from models.reloop2.evaluate import auc, logloss
from models.reloop2.examples import Examples, encode_examples, fit_feature_map
from models.reloop2.incremental import IncrementalTrainer
from models.reloop2.model import build_model
from models.reloop2.predict import predict
from models.reloop2.train import Progress, Schedule, fit, measure_hidden_mean, train
from models.training import Training

WORLD = DriftConfig(
    users=40,
    groups=4,
    items=30,
    categories=6,
    training_rows=6000,
    steady_rows=1000,
    shifted_rows=3000,
    raised_rows=0,
    back_rows=0,
)
CATEGORICAL = ["user_id", "user_group", "item_id", "cate_id"]
SMALL = DCNv2Config(embedding_dim=4, hidden_units=(16,), cross_layers=1, batch_norm=False, dropout=0.0)
QUICK = Schedule(epochs=4, batch=128, learning_rate=2e-2)


@pytest.fixture(scope="module")
def stream() -> tuple[pa.Table, Examples]:
    table = make_stream(WORLD, seed=1)
    feature_map = fit_feature_map(table.slice(0, WORLD.training_rows), categorical=CATEGORICAL)
    return table, encode_examples(table, feature_map, "click", "test")[0]


@pytest.fixture(scope="module")
def base(stream):
    table, examples = stream
    model = build_model(SMALL, fit_feature_map(table.slice(0, WORLD.training_rows), categorical=CATEGORICAL))
    done = fit(model, examples.take(slice(0, 5400)), examples.take(slice(5400, 6000)), QUICK)
    return model, done


def test_the_made_up_stream_has_the_rows_clicks_and_shift_that_it_says(stream):
    table, _ = stream
    phase, p, click = (table.column(name).to_numpy() for name in ("phase", "p_true", "click"))
    assert [int((phase == number).sum()) for number in range(-1, 4)] == list(WORLD.phase_rows)
    assert abs(p.mean() - click.mean()) < 0.02
    assert (np.diff(table.column("event_time").cast(pa.int64()).to_numpy()) > 0).all()
    keys = table.column("user_id").to_numpy() * 1000 + table.column("item_id").to_numpy()
    truth = {key: value for key, value, when in zip(keys, p, phase, strict=True) if when <= 0}
    moved = {
        int(key) for key, value, when in zip(keys, p, phase, strict=True) if when == 1 and key in truth and truth[key] != value
    }
    category = dict(zip(keys.tolist(), table.column("cate_id").to_pylist(), strict=True))
    assert len({category[key] for key in moved}) == WORLD.categories // 3
    assert make_stream(WORLD, seed=1).equals(table) and not make_stream(WORLD, seed=2).equals(table)


def test_fit_learns_and_leaves_the_best_epoch_and_the_hidden_mean(base, stream):
    model, done = base
    _, examples = stream
    validation = examples.take(slice(5400, 6000))
    probability = predict(model, validation).numpy()
    assert done.validation.logloss == logloss(validation.label_R, probability)
    assert auc(validation.label_R, probability) > 0.65
    assert not model.training and bool(model.hidden_mean_known)
    hidden = model(examples.take(slice(0, 5400)).columns).hidden_BD
    torch.testing.assert_close(model.hidden_mean, hidden.mean(0), rtol=1e-4, atol=1e-6)


def test_fit_stops_when_the_validation_does_not_improve_and_reports(stream):
    table, examples = stream
    model = build_model(SMALL, fit_feature_map(table.slice(0, 400), categorical=CATEGORICAL))
    seen: list[Progress] = []
    few = examples.take(slice(0, 300))
    noise = Examples(examples.take(slice(300, 400)).columns, 1 - examples.label_R[300:400])
    rules = dataclasses.replace(QUICK, epochs=60, learning_rate=0.1, patience=3)
    done = fit(model, few, noise, rules, training=Training(progress=seen.append))
    assert done.epochs == done.best_epoch + 3 < 60
    assert seen[-1].step == done.epochs * 3 and seen[-1].steps == 180
    assert all("validation logloss" in p.note for p in seen if p.step % 3 == 0)


def test_a_seed_fixes_the_weights(stream):
    table, examples = stream
    feature_map = fit_feature_map(table.slice(0, 400), categorical=CATEGORICAL)
    config = dataclasses.replace(SMALL, dropout=0.3)
    states = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(states))  # the caller's own generator plays no part
        model = build_model(config, feature_map, seed=4)
        fit(
            model, examples.take(slice(0, 300)), examples.take(slice(300, 400)), dataclasses.replace(QUICK, epochs=1), seed=seed
        )
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


def test_an_infinite_loss_is_told(stream):
    table, examples = stream
    model = build_model(SMALL, fit_feature_map(table.slice(0, 400), categorical=CATEGORICAL))
    with torch.no_grad():
        model.fc.bias.fill_(torch.inf)
    with pytest.raises(StreambankError, match=r"no longer finite .*; lower learning_rate"):
        fit(model, examples.take(slice(0, 300)), examples.take(slice(300, 400)), QUICK)


def test_a_last_batch_of_one_row_is_left_out_where_batches_are_normalized(stream):
    table, examples = stream
    feature_map = fit_feature_map(table.slice(0, 400), categorical=CATEGORICAL)
    few, later = examples.take(slice(0, 129)), examples.take(slice(300, 400))
    for batch_norm, steps in ((True, 1), (False, 2)):
        seen: list[Progress] = []
        model = build_model(dataclasses.replace(SMALL, batch_norm=batch_norm), feature_map)
        fit(model, few, later, dataclasses.replace(QUICK, epochs=1), training=Training(progress=seen.append))
        assert seen[-1].steps == steps
    model = build_model(dataclasses.replace(SMALL, batch_norm=True), feature_map)
    with pytest.raises(ConfigError, match="batch_norm needs two rows or more per update; batch is 1"):
        fit(model, few, later, dataclasses.replace(QUICK, batch=1))


def test_the_mean_of_no_rows_is_refused(stream, base):
    with pytest.raises(ValueError, match="mean of no rows"):
        measure_hidden_mean(base[0], stream[1].take(slice(0, 0)))


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 3e-3), ("sgd", 0.2)])
def test_incremental_training_follows_the_shift(stream, base, optimizer: str, rate: float):
    _, examples = stream
    shifted = examples.take(slice(7000, 10_000))
    model = build_model(SMALL, base[0].feature_map)
    model.load_state_dict(base[0].state_dict())
    trainer = IncrementalTrainer(model, learning_rate=rate, optimizer=optimizer, batch=50)
    predicted = []
    for start in range(0, len(shifted), 250):
        part = shifted.take(slice(start, start + 250))
        predicted.append(predict(model, part))
        trainer.learn(part)
    late = slice(1500, None)
    frozen = logloss(shifted.label_R[late], predict(base[0], shifted).numpy()[late])
    assert logloss(shifted.label_R[late], torch.cat(predicted).numpy()[late]) < frozen - 0.005
    assert not model.training


def test_incremental_training_checks_its_options(base):
    with pytest.raises(ConfigError, match="optimizer 'rmsprop' is not known"):
        IncrementalTrainer(base[0], optimizer="rmsprop")
    with pytest.raises(ConfigError, match="learning_rate 0 must be above 0"):
        IncrementalTrainer(base[0], learning_rate=0)


# train


def test_the_recipe_writes_a_model_and_the_streams_of_a_replay(tmp_path: Path):
    result = train(tmp_path, recipe="drift", seed=3, world=dataclasses.replace(WORLD, training_rows=3000))
    model = checkpoint.load(result.weights)
    assert model.feature_map.names == CATEGORICAL and bool(model.hidden_mean_known)
    impressions, labels = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("impressions", "labels"))
    assert impressions.num_rows == labels.num_rows == 4000
    assert not {"click", "label_time"} & set(impressions.schema.names)
    assert sorted(labels.column("impression_id").to_pylist()) == impressions.column("impression_id").to_pylist()
    for table in (impressions, labels):
        assert table.column("sequence").to_numpy()[0] <= table.column("sequence").to_numpy()[-1]
        assert (np.diff(table.column("event_time").cast(pa.int64()).to_numpy()) >= 0).all()
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["recipe"] == "drift" and report["metrics"] == result.metrics
    assert {"validation_logloss", "validation_auc", "rows"} <= result.metrics.keys()


def own_data(folder: Path, rows: int = 600) -> Path:
    rng = np.random.default_rng(0)
    item, age = rng.integers(0, 12, rows), rng.normal(40, 10, rows)
    table = pa.table(
        {
            "when": rng.permutation(rows),
            "item": pa.array([f"item {i}" for i in item]),
            "age": pa.array([None if i == 7 else a for i, a in enumerate(age)]),
            "seen": pa.array([[f"item {i}" for i in rng.integers(0, 12, n)] for n in rng.integers(0, 5, rows)]),
            "bought": pa.array((rng.random(rows) < 0.2 + 0.05 * item).astype(float)),
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def test_own_data_of_every_kind_is_learned(tmp_path: Path):
    options = {
        "data": str(own_data(tmp_path)),
        "label": "bought",
        "time": "when",
        "categorical": ["item"],
        "numeric": ["age"],
        "sequences": {"seen": "item"},
        "max_len": 3,
        "epochs": 2,
        "batch": 64,
    }
    result = train(
        tmp_path / "out", network="din", settings={"target_fields": [["item"]], "sequence_fields": [["seen"]]}, **options
    )
    model = checkpoint.load(result.weights)
    assert model.feature_map.names == ["item", "age", "seen"]
    assert model.feature_map["seen"].share_embedding == "item" and model.feature_map["seen"].max_len == 3
    check_previews(result, {"fit": 4}, size=(340, 900))
    assert result.metrics["rows_bad"] == 1 and result.metrics["rows"] in (539, 540)
    assert result.weights == tmp_path / "out" / "model.safetensors"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to learn from"),
        ({"recipe": "drfit"}, r"no recipe 'drfit' \(did you mean 'drift'\?\)"),
        ({"recipe": "drift", "epochs": 3}, r"brings its own data and settings; remove \['epochs'\]"),
        ({"epoch": 3}, r"no option 'epoch' \(did you mean 'epochs'\?\)"),
        ({"data": "none.parquet", "categorical": ["item"]}, "cannot be read as Parquet"),
        ({"data": None, "world": WORLD}, "nothing to learn from"),
        ({"data": "DATA", "world": WORLD, "categorical": ["item"]}, "world belongs to a recipe"),
        ({"data": "DATA"}, "no feature is named"),
        ({"data": "DATA", "categorical": ["item", "item"]}, r"columns \['item'\] are named more than once"),
        ({"data": "DATA", "categorical": ["items"]}, r"has no column 'items' \(did you mean 'item'\?\)"),
        ({"data": "DATA", "categorical": ["item"], "label": "item"}, "named more than once"),
        ({"data": "DATA", "numeric": ["age"], "label": "item"}, "label column 'item' is string"),
        ({"data": "DATA", "numeric": ["age"], "label": "when"}, "rows are bad"),
        ({"data": "DATA", "numeric": ["age"], "label": "bought", "settings": {"layers": 3}}, "no setting 'layers'"),
        ({"data": "DATA", "numeric": ["age"], "label": "bought", "epochs": 0}, "epochs is 0; it must be at least 1"),
        (
            {"data": "DATA", "numeric": ["age"], "label": "bought", "learning_rate": 0.0},
            "learning_rate is 0.0; it must be",
        ),
        (
            {"data": "DATA", "numeric": ["age"], "label": "bought", "embedding_l2": -1.0},
            "embedding_l2 is -1.0; it must",
        ),
        (
            {"data": "DATA", "numeric": ["age"], "label": "bought", "validation": 1.5},
            "above 0 and below 1",
        ),
        ({"data": "DATA", "numeric": ["age"], "label": "bought", "device": "gpu"}, "device must be .* got 'gpu'"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, options: dict, message: str):
    file = own_data(tmp_path, rows=60)
    options = {name: str(file) if value == "DATA" else value for name, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "out", **options)


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="the device is there")
def test_a_device_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(DeviceError, match="'cuda:7' is not there"):
        train(tmp_path, data=str(own_data(tmp_path)), numeric=["age"], label="bought", device="cuda:7")
