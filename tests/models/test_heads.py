from __future__ import annotations

import pytest
from torch import nn

from wsod.errors import ModelError
from wsod.models import HEADS
from wsod.models.final import final_layer


def test_the_final_layer_is_the_last_unless_the_class_count_says_otherwise():
    network = nn.ModuleDict(
        {"logits": nn.Linear(4, 3), "side": nn.Conv2d(4, 9, 1), "grouped": nn.Conv2d(4, 4, 1, groups=4)}
    )
    assert final_layer(network)[0] == "side"
    assert final_layer(network, 3)[0] == "logits"
    assert final_layer(network, 8)[0] == "side"
    with pytest.raises(ModelError, match="for the logits"):
        final_layer(nn.Conv2d(3, 3, 3))


@pytest.mark.parametrize("name", HEADS)
def test_described(name):
    assert HEADS[name].summary
    assert HEADS[name].supervision
