"""Run directories of models: the same bits back, and clear words about damage."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from planted import LOSSES, data_for, ratings, same_tables

from fastinfluence import GradientRollback, Interactions, MatrixFactorization, load
from fastinfluence.errors import NotFittedError, RunDirectoryError


def fit(data, **keywords):
    keywords = {"n_factors": 5, "n_epochs": 3, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(data)


@pytest.fixture
def model():
    return fit(ratings())


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("loss", LOSSES)
def test_round_trip(tmp_path, loss, optimizer):
    data = data_for(loss)
    weights = np.linspace(0, 2, len(data))
    model = MatrixFactorization(5, loss=loss, optimizer=optimizer, n_epochs=3, rng=8)
    model.fit(data, sample_weight=weights)
    model.save(tmp_path / "run")
    back = load(tmp_path / "run")
    mine, its = model.trajectory_, back.trajectory_
    assert back.get_params() == model.get_params()
    assert its.recipe == mine.recipe
    assert (its.losses, its.n_epochs) == (mine.losses, 3)
    assert sorted(its.checkpoints) == [0, 1, 2, 3]
    assert all(its.checkpoints[epoch].same_bits(mine.checkpoints[epoch]) for epoch in range(4))
    np.testing.assert_array_equal(its.program.weights, weights)
    assert back.global_mean_ == model.global_mean_
    assert back.n_epochs_ == 3
    its.verify()
    users, items = np.arange(9), np.arange(9)
    np.testing.assert_array_equal(back.predict(users, items), model.predict(users, items))
    assert same_tables(its.retrain(without=[5]), mine.retrain(without=[5]))
    queries = [(0, 0), (1, 2)]
    for explained, expected in zip(
        GradientRollback(back).explain(queries), GradientRollback(model).explain(queries),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(explained.train_index, expected.train_index)
        np.testing.assert_array_equal(explained.influence, expected.influence)


def test_ids_and_labels_come_back(tmp_path):
    data = Interactions.from_arrays(
        ["ann", "bob", "ann"],
        [10, 20, 20],
        [1.5, 2, 4],
        item_labels={10: "Alien", 20: "Brazil"},
    )
    fit(data).save(tmp_path / "run")
    back = load(tmp_path / "run").data_
    assert back.user_ids.tolist() == ["ann", "bob"]
    assert back.item_ids.tolist() == [10, 20]
    assert back.item_labels.tolist() == ["Alien", "Brazil"]
    assert back.user_labels is None
    assert back.values.tolist() == [1.5, 2, 4]
    assert back.has_values


def test_generator_is_saved_as_its_seed(tmp_path):
    model = fit(ratings(), rng=np.random.default_rng(5))
    model.save(tmp_path / "run")
    back = load(tmp_path / "run")
    assert back.rng == model.trajectory_.recipe.seed
    again = back.fit(ratings())
    assert again.trajectory_.end.same_bits(model.trajectory_.end)


def test_numpy_numbers_as_hyper_parameters(tmp_path):
    model = fit(ratings(), n_factors=np.int64(5), learning_rate=np.float32(0.01), rng=np.int32(3))
    model.save(tmp_path / "run")
    back = load(tmp_path / "run")
    assert back.trajectory_.recipe == model.trajectory_.recipe
    assert type(back.n_factors) is int


def test_early_stopped_run(tmp_path):
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    model = MatrixFactorization(
        8, n_epochs=60, learning_rate=0.15, regularization=0.0, early_stopping=3, rng=0
    ).fit(train, validation=test)
    model.save(tmp_path / "run")
    back = load(tmp_path / "run")
    assert back.n_epochs_ == model.n_epochs_ < 57
    assert back.trajectory_.validation_losses == model.trajectory_.validation_losses
    back.trajectory_.verify()
    assert back.early_stopping == 3


def test_a_loaded_model_is_an_ordinary_one(path, model, tmp_path):
    back = load(path)
    back.save(tmp_path / "copy")
    assert load(tmp_path / "copy").trajectory_.end.same_bits(model.trajectory_.end)
    assert repr(back) == repr(model)
    back.fit(ratings(seed=1))
    assert not back.trajectory_.end.same_bits(model.trajectory_.end)


def test_what_was_tampered_with_before_saving_is_noticed_after(model, tmp_path):
    model.item_biases_[0] += 1
    model.save(tmp_path / "run")
    with pytest.raises(RuntimeError, match="did not give the same parameters"):
        load(tmp_path / "run").trajectory_.verify()


def test_saving_needs_a_fit(tmp_path):
    with pytest.raises(NotFittedError):
        MatrixFactorization().save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overwriting_only_when_told_and_only_a_run(path, model, tmp_path):
    other = fit(ratings(seed=1))
    with pytest.raises(RunDirectoryError, match="overwrite=True"):
        other.save(path)
    assert load(path).trajectory_.end.same_bits(model.trajectory_.end)
    other.save(path, overwrite=True)
    assert load(path).trajectory_.end.same_bits(other.trajectory_.end)
    (tmp_path / "photos").mkdir()
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        other.save(tmp_path / "photos", overwrite=True)


# ---------------------------------------------------------------- damage


def array_files(path):
    files = sorted(path.rglob("*.npy"))
    assert len(files) > 20
    return files


def test_a_flipped_byte_in_any_array(path):
    for file in array_files(path):
        content = file.read_bytes()
        for at in (20, len(content) - 1):
            damaged = bytearray(content)
            damaged[at] ^= 0x10
            file.write_bytes(damaged)
            with pytest.raises(RunDirectoryError, match=f"{file.stem!r} is damaged"):
                load(path)
        file.write_bytes(content)
    load(path)


def test_a_truncated_or_missing_array(path):
    for file in array_files(path):
        content = file.read_bytes()
        file.write_bytes(content[:-3])
        with pytest.raises(RunDirectoryError, match=f"{file.stem!r} is damaged"):
            load(path)
        file.unlink()
        with pytest.raises(RunDirectoryError, match=f"{file.stem!r} is missing"):
            load(path)
        file.write_bytes(content)
    load(path)


def edit_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_another_format_version(path):
    edit_manifest(path, lambda manifest: manifest.update(format_version=999))
    with pytest.raises(RunDirectoryError, match="format version 999"):
        load(path)


def test_an_edited_manifest(path):
    edit_manifest(path, lambda manifest: manifest["content"]["meta"]["recipe"].update(n_epochs=9))
    with pytest.raises(RunDirectoryError, match="does not match its checksum"):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_manifest_that_is_none(path, text):
    (path / "manifest.json").write_text(text)
    with pytest.raises(RunDirectoryError, match="damaged"):
        load(path)


def test_what_is_no_run_of_a_model(path, model, tmp_path):
    with pytest.raises(RunDirectoryError, match="no run directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match="only half of one"):
        load(tmp_path)
    GradientRollback(model, path=tmp_path / "rows")
    with pytest.raises(RunDirectoryError, match="is a row-store, not a run of a model"):
        load(tmp_path / "rows")


def test_errors_are_also_what_callers_expect(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load(os.fspath(tmp_path / "nowhere"))
