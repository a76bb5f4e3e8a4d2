from __future__ import annotations

import json

import numpy as np
import pytest

from atcon.config import DataConfig
from atcon.subsets import label_matrix, load_subset, save_subset, select, small_set
from tests.atcon.datasets import Toy, many
from wsod.errors import ConfigError, DataError


def chosen(train, val, /, **options):
    config = DataConfig(spec="toy", **options)
    labels = label_matrix(train, config.difficult)
    return select(config, train, labels, val, label_matrix(val, config.difficult))


def test_a_small_set_respects_its_size_and_is_the_same_again():
    train, val = many(200), many(30, split="val", seed=1)
    subset = chosen(train, val, per_class=5)
    assert train.pixels_read == val.pixels_read == 0
    labels = label_matrix(train)
    rows = [train.ids.index(name) for name in subset.train]
    assert labels[rows].sum(0).tolist() == [5, 5, 5, 5]
    assert subset == chosen(train, val, per_class=5)
    assert subset.train != chosen(train, val, per_class=5, subset_seed=1).train
    single = chosen(train, val, per_class=3, balanced=True)
    rows = [train.ids.index(name) for name in single.train]
    assert labels[rows].sum(1).tolist() == [1] * 12
    assert labels[rows].sum(0).tolist() == [3, 3, 3, 3]


def test_a_small_set_equals_the_walk_it_is_defined_by():
    labels = label_matrix(many(60))
    taken, count = [], [0] * 4
    for row in np.random.default_rng(7).permutation(60):
        present = [k for k in range(4) if labels[row, k]]
        if all(count[k] < 6 for k in present):
            taken.append(int(row))
            for k in present:
                count[k] += 1
    assert small_set(labels, 6, seed=7) == sorted(taken)


def test_difficult_objects():
    train = Toy([[0, 1], [2], [3, 3], []], [[False, True], [True], [True, False], []])
    expected = {
        "drop": ([[0], [], [3], []], [0, 2]),
        "keep": ([[0, 1], [2], [3], []], [0, 1, 2]),
        "parity": ([[0], [], [3], []], [0, 1, 2, 3]),
    }
    for policy, (classes, used) in expected.items():
        labels = label_matrix(train, policy)
        assert [np.flatnonzero(row).tolist() for row in labels] == classes
        subset = chosen(train, many(5, split="val"), difficult=policy)
        assert subset.train == tuple(train.ids[i] for i in used)


def test_train_and_val_share_no_image():
    train = many(50)
    subset = chosen(train, train, train="train", val="train", val_images=20, per_class=2, unlabelled="rest")
    parts = [set(subset.train), set(subset.unlabelled), set(subset.val)]
    assert len(subset.val) == 20
    assert sum(map(len, parts)) == len(set.union(*parts)) == 50


def test_limits():
    train, val = many(50), many(30, split="val")
    subset = chosen(train, val, limit=7)
    assert (len(subset.train), len(subset.val)) == (7, 7)
    assert subset.unlabelled == subset.train
    assert len(chosen(train, val, val_images=9).val) == 9


def test_the_index_list_is_read_back(tmp_path):
    train, val = many(40), many(30, split="val")
    subset, path = chosen(train, val, per_class=3, unlabelled="rest"), tmp_path / "subset.json"
    save_subset(path, subset)
    assert load_subset(path, train, val) == subset
    with pytest.raises(ConfigError, match="train039"):
        load_subset(path, many(39), val)
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "val": table["train"]}))
    with pytest.raises(ConfigError, match="both in train and val"):
        load_subset(path, train, train)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="index list"):
        load_subset(path, train, val)


def test_wrong_labels_are_named():
    with pytest.raises(DataError, match=r"train001.*labels below 4"):
        label_matrix(Toy([[0], [4]]))
    with pytest.raises(DataError, match=r"train000.*one class.*a, c"):
        label_matrix(Toy([[0, 2]], task="multiclass"))
    with pytest.raises(ConfigError, match="at least one usable image"):
        chosen(Toy([[0]], [[True]]), many(5, split="val"))
    with pytest.raises(ConfigError, match="val_images"):
        DataConfig(train="val", val="val")
