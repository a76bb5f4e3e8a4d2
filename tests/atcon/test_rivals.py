"""RRR, GAIN and CAM-loss against plain loops over images."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atcon.data import Batch
from atcon.objectives import OBJECTIVES, cam_loss, gain_loss, rrr_loss
from atcon.objectives.cam_loss import CamLoss, unit_range
from atcon.objectives.gain import Gain
from atcon.objectives.rrr import RRR
from tests.atcon.networks import mini_classifier, photos
from tests.atcon.slopes import check_slope
from wsod.errors import ConfigError, ModelError
from wsod.maps import attention_maps
from wsod.models import Classifier

LABELS = torch.tensor([1, 0, 4])
SHOWN = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])


def left(n: int = 3) -> Tensor:
    mask = torch.zeros(n, 96, 96, dtype=torch.bool)
    mask[:, 20:70, 10:50] = True
    return mask


def gradients(loss: Tensor, classifier: Classifier) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(classifier.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, classifier.parameters(), strict=True)
    ]


def check_weights(loss, classifier: Classifier, tolerance: float = 1e-4) -> None:
    check_slope(loss, list(classifier.parameters()), gradients(loss(), classifier), tolerance)


# ---- RRR


@pytest.mark.parametrize("explained", ["log_probabilities", "log_probability", "logit"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_rrr_is_a_loop_over_images(task: str, explained: str) -> None:
    classifier, images, masks = mini_classifier(task=task), photos(), left()
    targets = LABELS if task == "multiclass" else SHOWN
    for per in ("image", "pixel"):
        total = 0.0
        for n in range(3):
            x = images[n : n + 1].clone().requires_grad_()
            y = classifier(x)[0]
            if task == "multiclass":
                values = y if explained == "logit" else y.log_softmax(0)
                q = values.sum() if explained == "log_probabilities" else values[LABELS[n]]
            else:
                values = y if explained == "logit" else y.sigmoid().log()
                q = (values * SHOWN[n]).sum()
                if explained == "log_probabilities":
                    q = values.sum() + (1 - y.sigmoid()).log().sum()
            gradient = np.zeros((3, 96, 96))
            if q.requires_grad:
                gradient = torch.autograd.grad(q, x)[0][0].numpy()
            term = (gradient**2 * (1 - masks[n].numpy())).sum()
            total += term / (3 * int((~masks[n]).sum())) if per == "pixel" else term
        loss, found = rrr_loss(classifier, images, targets, masks, explained=explained, per=per)
        assert float(loss.detach()) == pytest.approx(total / 3, rel=1e-9)
        assert float(found["masked"]) == 1
        assert 0 <= float(found["share"]) <= 1


def test_rrr_slope_and_images_without_mask() -> None:
    classifier, images, masks = mini_classifier(), photos(), left()
    check_weights(lambda: rrr_loss(classifier, images, LABELS, masks, per="pixel")[0], classifier)
    masks[1], masks[2] = False, True
    loss, found = rrr_loss(classifier, images, LABELS, masks)
    alone, _ = rrr_loss(classifier, images[:1], LABELS[:1], masks[:1])
    assert float(loss.detach()) == pytest.approx(float(alone.detach()) / 3)
    assert float(found["masked"]) == pytest.approx(1 / 3)
    for wrong in ({"explained": "probability"}, {"per": "batch"}):
        with pytest.raises(ConfigError):
            rrr_loss(classifier, images, LABELS, masks, **wrong)


# ---- CAM-loss


def slow_cam_loss(classifier: Classifier, images: Tensor, shown: list[list[int]]) -> float:
    kept: list[Tensor] = []
    layer = classifier.network.get_submodule(classifier.target_layer)
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o.detach()))
    classifier(images)
    handle.remove()
    weight = classifier.network.fc.weight.detach().numpy()

    def scaled(m: np.ndarray) -> np.ndarray:
        return (m - m.min()) / (m.max() - m.min() + 1e-8)

    total = 0.0
    for features, labels in zip(kept[0].numpy(), shown, strict=True):
        terms = [
            np.abs(scaled(features.sum(0)) - scaled(np.tensordot(weight[k], features, 1))).mean()
            for k in labels
        ]
        total += float(np.mean(terms)) if terms else 0.0
    return total / len(images)


def test_cam_loss_is_a_loop_over_images_and_classes() -> None:
    classifier, images = mini_classifier(), photos()
    loss, found = cam_loss(classifier, images, LABELS)
    assert float(loss.detach()) == pytest.approx(slow_cam_loss(classifier, images, [[1], [0], [4]]), rel=1e-9)
    assert 0 < float(found["spread"]) < 1
    several, _ = cam_loss(classifier, images, SHOWN)
    assert float(several.detach()) == pytest.approx(
        slow_cam_loss(classifier, images, [[0, 3], [], [2]]), rel=1e-9
    )


def test_cam_loss_slope_and_constants() -> None:
    classifier, images = mini_classifier(), photos()
    check_weights(lambda: cam_loss(classifier, images, LABELS, detach_weights=False)[0], classifier)
    weights = classifier.network.fc.weight
    with_weights = cam_loss(classifier, images, LABELS, detach_weights=False)[0]
    assert torch.autograd.grad(with_weights, weights)[0].any()
    constant = cam_loss(classifier, images, LABELS)[0]
    assert torch.autograd.grad(constant, weights, allow_unused=True)[0] is None
    one = gradients(cam_loss(classifier, images, LABELS, detach_target="cam")[0], classifier)
    both = gradients(cam_loss(classifier, images, LABELS)[0], classifier)
    assert not all(torch.allclose(a, b) for a, b in zip(one, both, strict=True))
    with pytest.raises(ConfigError, match="detach_target"):
        cam_loss(classifier, images, LABELS, detach_target="caam")


def test_cam_loss_falls_and_constant_maps_carry_no_gradient() -> None:
    found, varies = unit_range(torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]]))
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert varies.tolist() == [True, False]
    assert not found[1].any()
    classifier, images = mini_classifier(), photos()
    optimiser = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    values = []
    for _ in range(12):
        loss, _ = cam_loss(classifier, images, LABELS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_cam_loss_refuses_features_of_either_sign_and_other_heads() -> None:
    classifier = mini_classifier(activation=nn.GELU)
    with pytest.raises(ModelError, match="either sign"):
        cam_loss(classifier, photos(), LABELS)
    classifier = mini_classifier()
    classifier.network.fc = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    with pytest.raises(ModelError, match=r"another (kind of )?head"):
        cam_loss(classifier, photos(), LABELS)


# ---- GAIN


def slow_gain(classifier: Classifier, images: Tensor, shown: list[list[int]], fill, sigmoid: bool) -> float:
    total = 0.0
    for image, labels in zip(images, shown, strict=True):
        terms = []
        for label in labels:
            cam = attention_maps(classifier, image[None], [label], ["gradcam"]).maps["gradcam"]
            big = F.interpolate(cam[:, None], size=(96, 96), mode="bilinear")[0, 0]
            unit = (big - big.min()) / (big.max() - big.min() + 1e-8)
            mask = 1 / (1 + (-10 * (unit - 0.5)).exp())
            scores = classifier((image - mask * (image - fill(image)))[None])[0].detach()
            terms.append(float((scores.sigmoid() if sigmoid else scores.softmax(0))[label]))
        total += float(np.mean(terms)) if terms else 0.0
    return total / len(images)


def test_gain_is_a_loop_over_images_and_classes() -> None:
    classifier, images = mini_classifier(), photos()
    black = -torch.tensor(classifier.preprocess.mean) / torch.tensor(classifier.preprocess.std)
    fills = {
        "mean": torch.zeros_like,
        "zero": lambda image: black.double()[:, None, None].expand_as(image),
        "blur": lambda image: F.avg_pool2d(image, 13, 1, 6, count_include_pad=False),
    }
    for name, fill in fills.items():
        loss, found = gain_loss(classifier, images, LABELS, fill=name)
        expected = slow_gain(classifier, images, [[1], [0], [4]], fill, sigmoid=False)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
        assert float(found["erased_score"]) == pytest.approx(expected, rel=1e-6)
    several, _ = gain_loss(classifier, images, SHOWN)
    expected = slow_gain(classifier, images, [[0, 3], [], [2]], torch.zeros_like, sigmoid=True)
    assert float(several.detach()) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match="fill"):
        gain_loss(classifier, images, LABELS, fill="noise")


def test_gain_slope_with_the_whole_graph() -> None:
    classifier, images = mini_classifier(), photos()
    check_weights(lambda: gain_loss(classifier, images, LABELS, create_graph=True)[0], classifier, 1e-3)


def test_gain_options_change_where_the_gradient_goes() -> None:
    classifier, images = mini_classifier(), photos()
    found = {
        (graph, frozen): gradients(
            gain_loss(classifier, images, LABELS, create_graph=graph, freeze_second_pass=frozen)[0],
            classifier,
        )
        for graph in (False, True)
        for frozen in (False, True)
    }
    names = [name for name, _ in classifier.named_parameters()]
    head = names.index("network.fc.weight")
    # with constants in both places the classifier's own weights have nothing to learn from
    assert not found[False, True][head].any()
    assert found[True, True][head].any()
    assert found[False, False][head].any()
    assert all(any(g.any() for g in grads) for grads in found.values())


def test_gain_falls_and_learns_from_masks() -> None:
    classifier, images = mini_classifier(), photos()
    reference = copy.deepcopy(classifier.state_dict())
    masks = torch.zeros(3, 5, 96, 96, dtype=torch.bool)
    masks[0, 1, :50] = masks[1, 0, 40:] = True
    first, found = gain_loss(classifier, images, LABELS, foreground=masks, mask_weight=2.0)
    plain, _ = gain_loss(classifier, images, LABELS)
    assert float(first.detach()) == pytest.approx(float(plain.detach()) + 2 * float(found["mask"]))
    cams = attention_maps(classifier, images, LABELS, ["gradcam"]).maps["gradcam"]
    big = unit_range(F.interpolate(cams[:, None], size=(96, 96), mode="bilinear")[:, 0])[0]
    truth = torch.stack([masks[0, 1], masks[1, 0]]).double()
    assert float(found["mask"]) == pytest.approx(float((big[:2] - truth).square().mean((1, 2)).sum() / 3))
    optimiser, values = torch.optim.Adam(classifier.parameters(), lr=1e-4), []
    for _ in range(8):
        loss, _ = gain_loss(classifier, images, LABELS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0]
    assert not all(torch.equal(a, reference[k]) for k, a in classifier.state_dict().items())


# ---- the objectives


def test_needs_and_ledger() -> None:
    assert (OBJECTIVES["rrr"], OBJECTIVES["gain"], OBJECTIVES["cam_loss"]) == (RRR, Gain, CamLoss)
    assert RRR().requires == {"labels", "second_order", "masks"}
    assert RRR(source="boxes").learned_from == ("boxes",)
    assert Gain().requires == {"labels", "second_order"}
    assert Gain(mask_weight=1.0).requires == {"labels", "second_order", "masks"}
    assert Gain().learned_from == ("image labels",)
    assert Gain(mask_weight=1.0, source="boxes").learned_from == ("image labels", "boxes")


@pytest.mark.parametrize("name", ["isnet", "rrr", "gain", "cam_loss"])
def test_parts_of_a_batch_add_up_and_nothing_is_left_behind(name: str) -> None:
    classifier = mini_classifier()
    masks = torch.zeros(3, 5, 96, 96, dtype=torch.bool)
    masks[0, 1, 20:70, 10:50] = masks[1, 0, 20:70] = True
    places = {"masks": masks, "void": masks[:, 0] & False, "has_mask": torch.tensor([True, True, False])}
    batch = Batch(photos(), LABELS, (0, 1, 2), **places)
    options = {"variant": "original"} if name == "isnet" else {"mask_weight": 1.0} if name == "gain" else {}
    objective = OBJECTIVES[name](**options)
    before = copy.deepcopy(classifier.state_dict())
    whole = objective(classifier, batch, 0)
    sums: dict[str, float] = {}
    for part in batch.parts(2):
        for key, value in objective(classifier, part, 0).items():
            sums[key] = sums.get(key, 0.0) + float(value.detach()) * len(part) / 3
    for key, value in whole.items():
        if key != "isnet/conserved":  # a ratio of sums
            assert sums[key] == pytest.approx(float(value.detach()), rel=1e-6), key
            assert value.ndim == 0
    assert set(whole) == set(sums)
    assert math.isfinite(float(whole[name].detach()))
    assert whole[name].requires_grad
    assert not any(whole[key].requires_grad for key in whole if key != name)
    assert all(p.grad is None for p in classifier.parameters())
    assert all(torch.equal(a, before[k]) for k, a in classifier.state_dict().items())
    assert not any(m._forward_hooks for m in classifier.modules())
