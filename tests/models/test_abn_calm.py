"""The Attention Branch Network and CALM: their equations by hand, and what each promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atcon.data import Batch
from atcon.objectives.likelihood import Likelihood
from atcon.objectives.supervised import Supervised
from wsod.errors import ConfigError, ModelError
from wsod.maps import attention_maps
from wsod.models import build_classifier
from wsod.models.heads.calm import CALM, CALMNetwork, CueLocation

CLASSES = list("abcde")


def calm(gate: str = "softplus", detach_norm: bool = False, multilabel: bool = False) -> CALMNetwork:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
    found = CALMNetwork(trunk, CueLocation(6, gate, detach_norm), nn.Conv2d(6, 5, 1), multilabel)
    return found.double()


def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def parts(network: CALMNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    """p(y|x,z) and p(z|x) as the paper writes them."""
    features = network.trunk(images())
    scores = network.location.score(features)[:, 0]
    gate = (F.softplus(scores) if network.location.gate == "softplus" else scores.relu()) + 1e-8
    classes = network.classes(features)
    given = classes.sigmoid() if network.multilabel else classes.softmax(1)
    return given, gate / gate.sum((1, 2), keepdim=True)


@pytest.mark.parametrize("gate", ["softplus", "relu"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_probabilities_and_maps(gate, multilabel):
    network = calm(gate, multilabel=multilabel)
    given, where = parts(network)
    joint = given * where[:, None]
    logits = network(images())
    probabilities = logits.sigmoid() if multilabel else logits.softmax(1)
    torch.testing.assert_close(probabilities, joint.sum((2, 3)))
    features = network.trunk(images())
    found = network.joint(network.classes(features), network.location(features), multilabel)
    maps = CALM.readings(found)
    torch.testing.assert_close(maps["joint"], joint)
    torch.testing.assert_close(maps["saliency"], where)
    torch.testing.assert_close(maps["posterior"], joint / joint.sum((2, 3), keepdim=True))
    if not multilabel:
        torch.testing.assert_close(maps["joint"].sum((1, 2, 3)), torch.ones(3, dtype=torch.float64))


def test_cross_entropy_is_the_marginal_likelihood_and_has_the_gradient_of_em():
    network, y = calm(), torch.tensor([0, 3, 1])
    loss = F.cross_entropy(network(images()), y)
    given, where = parts(network)
    chosen = torch.stack([given[row, label] * where[row] for row, label in enumerate(y)])
    torch.testing.assert_close(loss, -chosen.sum((1, 2)).log().mean())
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    posterior = (chosen / chosen.sum((1, 2), keepdim=True)).detach()
    log_given = torch.stack([given[row, label].log() for row, label in enumerate(y)])
    em = -(posterior * (log_given + where.log())).sum((1, 2)).mean()
    for a, b in zip(gradient, torch.autograd.grad(em, list(network.parameters())), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("detached", "signs"), [(False, {-1.0, 1.0}), (True, {-1.0})])
def test_a_detached_normaliser_only_ever_pushes_the_gate_up(detached, signs):
    network = calm(detach_norm=detached)
    seen: list[torch.Tensor] = []

    def note(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    network.location.score.register_forward_hook(note)
    # not cross-entropy: that normalises over the classes once more, and gives back what was detached
    F.nll_loss(network(images()), torch.tensor([0, 3, 1])).backward()
    assert set(seen[0].grad.sign().unique().tolist()) == signs


def test_likelihood_is_for_calm_alone():
    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), (0, 1))
    classifier = build_classifier("smallnet", CLASSES, head="calm", size=32).eval()
    expected = -classifier(batch.images).softmax(1)[[0, 1], [0, 1]].log().mean()
    torch.testing.assert_close(Likelihood()(classifier, batch, 0)["likelihood"], expected)
    with pytest.raises(ConfigError, match="the head calm"):
        Likelihood()(build_classifier("smallnet", CLASSES, size=32), batch, 0)


def test_no_cue_anywhere_is_a_uniform_location():
    network = calm("relu")
    nn.init.zeros_(network.location.score.weight)
    nn.init.constant_(network.location.score.bias, -1.0)
    where = network.location(network.trunk(images())).exp()
    torch.testing.assert_close(where, torch.full_like(where, 1 / 16))


@pytest.mark.parametrize("arch", ["smallnet", "resnet18", "mobilenet_v2"])
def test_abn_by_hand(arch):
    torch.manual_seed(0)
    classifier = build_classifier(arch, CLASSES, head="abn", size=64).eval()
    network, x = classifier.network, torch.randn(2, 3, 64, 64)
    body, stage = network.trunk
    with torch.no_grad():
        given = body(x)
        branch = network.branch
        maps = branch.maps(branch.stage(given))
        attention = branch.attention[1](F.conv2d(maps, branch.attention[0].weight, padding=1)).sigmoid()
        assert attention.shape[2:] == given.shape[2:]
        output = network(x)
        expected = network.fc(stage(given + attention * given).mean((2, 3)))
        torch.testing.assert_close(output.logits, expected)
        torch.testing.assert_close(output.auxiliary[0], branch.logits(maps).mean((2, 3)))
        assert torch.equal(classifier(x), output.logits)
    found = attention_maps(classifier, x, [[0, 1], [2]], ["attention"]).maps["attention"]
    torch.testing.assert_close(found[2], attention[1, 0])
    assert 0 < float(found.min()) <= float(found.max()) < 1


def test_the_branch_starts_from_the_stages_weights_and_is_another_one(tmp_path):
    start = build_classifier("resnet18", CLASSES, size=64)
    torch.save(start.network.state_dict(), tmp_path / "start.pt")
    network = build_classifier(
        "resnet18", CLASSES, head="abn", weights=tmp_path / "start.pt", size=64
    ).network
    stage, twin = network.trunk[1].layer4, network.branch.stage.layer4
    assert torch.equal(stage[0].conv1.weight, twin[0].conv1.weight)
    assert stage[0].conv1.weight is not twin[0].conv1.weight
    assert stage[0].conv1.stride == (2, 2)
    assert twin[0].conv1.stride == twin[0].downsample[0].stride == (1, 1)


def test_the_branch_is_trained_with_the_same_labels():
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", CLASSES, head="abn", size=32)
    batch = Batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]), (0, 1, 2, 3))
    found = Supervised()(classifier.eval(), batch, 0)
    output = classifier.network(batch.images)
    expected = [F.cross_entropy(logits, batch.targets) for logits in (output.logits, output.auxiliary[0])]
    torch.testing.assert_close(found["supervised"], sum(expected))
    torch.testing.assert_close(found["supervised/logits"], expected[0])
    found["supervised"].backward()
    assert all(p.grad is not None for p in classifier.parameters())


def test_abn_is_refused_where_no_stage_is_left():
    with pytest.raises(ModelError, match="a stage after it"):
        build_classifier("resnet18", CLASSES, head="abn", head_options={"split": "layer4"}, size=64)
    with pytest.raises(ModelError, match="chain of modules"):
        build_classifier("googlenet", CLASSES, head="abn", size=64)
