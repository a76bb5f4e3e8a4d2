from __future__ import annotations

import pytest
import torch

from tests.maps.networks import batch, make, suited
from tests.maps.quick import quick
from wsod.errors import ConfigError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.extract import cases_of


@pytest.mark.parametrize(
    ("labels", "cases"),
    [
        ([1, 0, 3], [[0, 1], [1, 0], [2, 3]]),
        (torch.tensor([1, 0, 3]), [[0, 1], [1, 0], [2, 3]]),
        ([[1], [], [3, 0]], [[0, 1], [2, 3], [2, 0]]),
        (torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]), [[0, 1], [2, 0], [2, 3]]),
        (torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool(), [[0, 1], [2, 0], [2, 3]]),
        (torch.tensor([[0, 1.0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]), [[0, 1], [2, 0], [2, 3]]),
        ([[], [], []], []),
    ],
)
def test_labels_in_any_form(labels, cases):
    assert cases_of(labels, 3, 4).tolist() == cases
    found = attention_maps(make("relu"), batch(), labels, ["gradcam"])
    assert found.cases.tolist() == cases
    assert found.maps["gradcam"].shape == (len(cases), 8, 8)


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0],
        [1, 0, 4],
        [1, 0, -1],
        [[0], [1], [0.5]],
        torch.tensor([[0, 1], [1, 0], [0, 0]]),
        torch.tensor([[0, 2, 0, 0]] * 3),
        [0, True, 1],
    ],
)
def test_labels_that_do_not_fit(labels):
    with pytest.raises(ConfigError, match="labels"):
        attention_maps(make("relu"), batch(), labels)


def test_images_that_are_none():
    with pytest.raises(ConfigError, match="images"):
        attention_maps(make("relu"), torch.zeros(3, 16, 16), [0, 0, 0])


def test_unknown_method():
    with pytest.raises(ConfigError, match=r"Did you mean 'gradcam'"):
        attention_maps(make("relu"), batch(), [0, 0, 0], ["gradcamm"])


@pytest.mark.parametrize("kind", ["relu", "vit"])
def test_one_forward_for_all_methods_and_classes(kind):
    classifier = make(kind)
    calls = []
    classifier.network.register_forward_hook(lambda *io: calls.append(1))
    names = [
        name for name, method in METHODS.items() if "forwards" not in method.needs and suited(method) == kind
    ]
    found = attention_maps(classifier, batch(), [[0, 1, 2], [3], [1, 2]], names)
    assert len(calls) == 1
    for name in names:
        alone = attention_maps(classifier, batch(), [[0, 1, 2], [3], [1, 2]], [name]).maps[name]
        torch.testing.assert_close(found.maps[name], alone, rtol=1e-12, atol=0)


def test_nothing_returned_holds_a_graph():
    for kind in ("relu", "vit"):
        names = [quick(name) for name, method in METHODS.items() if suited(method) == kind]
        found = attention_maps(make(kind), batch(), [0, 1, 2], names)
        assert not found.logits.requires_grad
        assert not any(maps.requires_grad for maps in found.maps.values())


def test_methods_build_a_graph_for_training_alone():
    cases = torch.tensor([[0, 1]])
    for name, method in METHODS.items():
        for graph in (False, True) if method.fit is None else ():
            tape = Tape(make(suited(method)), batch(), needs=method.needs, create_graph=graph)
            maps = METHODS[quick(name)](tape, cases, create_graph=graph)
            assert maps.requires_grad == (graph and (method.differentiable or name == "ablationcam"))


def test_somebody_elses_module():
    network = make("relu").network
    found = attention_maps(network, batch(), [0, 1, 2])
    assert found.maps["gradcam"].shape == (3, 8, 8)
