"""ISNet against slow re-derivations, in both modes of batch norm, and what it must leave alone."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atcon.config import load_config
from atcon.data import Batch
from atcon.objectives import OBJECTIVES, isnet_loss
from atcon.objectives.foreground import foreground_of
from atcon.objectives.heatmap import (
    background_loss,
    background_share,
    cuts_of,
    foreground_loss,
    gwrp,
    shrunk,
    usable,
)
from atcon.objectives.isnet import ISNet, explained_cases, log_odds, tune_cuts
from atcon.train import Event, finetune, resume
from tests.atcon.networks import CLASSES, mini_classifier, photos
from tests.atcon.slopes import check_slope
from wsod.errors import ConfigError, ModelError
from wsod.maps.lrp import composite, relevance
from wsod.maps.tape import Tape
from wsod.models import Classifier, build_classifier, load_classifier, save_checkpoint

OPTIONS = {"decay": 0.9, "cuts": ((0.5, 3.0),)}


LOGITS = torch.tensor([[0.1, 2.0, -3.0, 0.0, 1.0], [4.0, 0.0, 1.0, 2.0, -1.0], [0.0, 1.0, 2.0, 9.0, 3.0]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def left(n: int = 3, size: int = 96) -> Tensor:
    mask = torch.zeros(n, size, size, dtype=torch.bool)
    mask[:, 20:70, 10:50] = True
    return mask


# ---- the loss of a map


def slow_gwrp(values: list[float], d: float) -> float:
    ordered = sorted(values, reverse=True)
    weights = [d**i if d or i else 1.0 for i in range(len(ordered))]
    return sum(w * v for w, v in zip(weights, ordered, strict=True)) / sum(weights)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=400), st.sampled_from([0.0, 0.3, 0.9, 0.99, 0.996, 1.0])
)
@settings(max_examples=60, deadline=None)
def test_ranked_pooling_is_a_full_sort(values: list[float], d: float) -> None:
    found = float(gwrp(torch.tensor(values, dtype=torch.float64), d))
    assert found == pytest.approx(slow_gwrp(values, d), rel=2e-5, abs=1e-6)


def test_ranked_pooling_of_many_values() -> None:
    values = random(2, 3, 60_000).abs()
    for d in (0.9, 0.996):
        ordered = values.sort(descending=True).values
        weights = d ** torch.arange(60_000, dtype=torch.float64)
        expected = (ordered * weights).sum(-1) / weights.sum()
        torch.testing.assert_close(gwrp(values, d), expected, rtol=1e-6, atol=0)
    with pytest.raises(ConfigError, match="decay"):
        gwrp(values, 1.5)


def slow_background(r: np.ndarray, mask: np.ndarray, d: float, energy: float) -> float:
    """As the authors' code has it: normalise, pool, squash to u, cross-entropy of u with 0."""
    size = np.abs(r)
    mean = (size * mask).sum() / (mask.sum() * len(r) + 1e-10)
    terms = []
    for channel in size / (mean + 1e-10) * (1 - mask):
        g = slow_gwrp(channel.ravel().tolist(), d)
        terms.append(-math.log(1 - min(g / (g + energy), 1 - 1e-7)))
    return float(np.mean(terms))


def test_background_loss_is_the_cross_entropy_of_the_squashed_pool() -> None:
    r, mask = random(4, 3, 8, 8), (random(4, 1, 8, 8, seed=1) > 0).double()
    for d, energy in product((0.0, 0.9, 1.0), (1.0, 3.0)):
        found = background_loss(r, mask, decay=d, energy=energy)
        expected = [
            slow_background(a, m, d, energy) for a, m in zip(r.numpy(), mask.numpy()[:, 0], strict=True)
        ]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@given(st.floats(1e-3, 1e3), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_laws_of_the_background_loss(scale: float, seed: int) -> None:
    r, mask = random(2, 3, 6, 6, seed=seed), torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    mask[:, :, 1:4, 2:5] = 1
    loss = background_loss(r, mask, decay=0.9)
    torch.testing.assert_close(background_loss(scale * r, mask, decay=0.9), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(background_loss(-r, mask, decay=0.9), loss)
    outside = (mask[0, 0] == 0).nonzero()
    moved = r.clone()
    order = torch.randperm(len(outside), generator=torch.Generator().manual_seed(seed))
    moved[:, :, outside[:, 0], outside[:, 1]] = r[:, :, outside[order, 0], outside[order, 1]]
    torch.testing.assert_close(background_loss(moved, mask, decay=0.9), loss)
    assert not background_loss(r * mask, mask, decay=0.9).any()
    assert not background_loss(r, torch.ones_like(mask), decay=0.9).any()
    more = r + 0.5 * r.sign() * (1 - mask)
    assert (background_loss(more, mask, decay=0.9) > loss).all()
    capped = background_loss(r, mask, decay=0.9, cap=0.01)
    assert (capped <= 0.01).all()


def test_foreground_valley() -> None:
    mask = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def at(s: float, hybrid: bool = True) -> float:
        return float(
            foreground_loss(
                torch.full((1, 1, 1, 1), s, dtype=torch.float64), mask, (2.0, 10.0), hybrid=hybrid
            )
        )

    assert at(0) == 1
    assert at(1) == 0.25
    for s in (2.0, 5.0, 10.0):
        assert at(s) == at(-s) == at(s, hybrid=False) == 0
    assert at(11) == at(11, hybrid=False) == 0.25
    assert at(12) == at(12, hybrid=False) == 1
    assert at(15) == 4  # 1 + (15 - 12)
    assert at(15, hybrid=False) == 6.25
    s = torch.tensor([11.0, 20.0], dtype=torch.float64, requires_grad=True)
    foreground_loss(s.reshape(2, 1, 1, 1), mask, (2.0, 10.0)).sum().backward()
    assert s.grad.tolist() == [0.5, 1.0]
    with pytest.raises(ConfigError, match="cuts"):
        foreground_loss(random(1, 1, 2, 2), mask, (3.0, 1.0))


def test_cuts_of_synthetic_statistics() -> None:
    steady = torch.tensor([9.0, 11.0])  # m = 10, sigma = 1
    assert cuts_of(steady) == (7.0, 13.0)
    wide = torch.tensor([0.0, 20.0])  # m = 10, sigma = 10: m/5 and 25 C1 = 50 > m + 3 sigma = 40
    assert cuts_of(wide) == (2.0, 40.0)
    wider = torch.tensor([0.0] * 99 + [1000.0])
    assert cuts_of(wider) == (2.0, 50.0)
    with pytest.raises(ConfigError, match="relevance"):
        cuts_of(torch.zeros(3))


def test_masks_of_layers_are_generous() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 2, 5] = 1
    found = shrunk(mask, torch.zeros(1, 9, 4, 4))
    assert found.sum() == 1
    assert found[0, 0, 1, 2] == 1
    assert usable(torch.stack([mask[0], mask[0] * 0, mask[0] * 0 + 1])).tolist() == [True, False, False]
    share = background_share(torch.ones(1, 3, 8, 8), mask)
    assert float(share) == pytest.approx(63 / 64)


# ---- what is explained


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_log_odds(values: list[float], data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(values) - 1))
    logits = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    found = log_odds(logits, torch.tensor([label]))
    others = [v for k, v in enumerate(values) if k != label]
    assert float(found.detach()) == pytest.approx(
        values[label] - math.log(sum(map(math.exp, others))), abs=1e-9
    )
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all()
    if len(values) == 2:
        assert float(found.detach()) == pytest.approx(values[label] - values[1 - label], abs=1e-12)


def test_log_odds_with_the_authors_epsilon_shrinks_for_the_improbable() -> None:
    y = torch.tensor([[0.0, -math.log(999.0)]], dtype=torch.float64, requires_grad=True)
    slopes = [
        torch.autograd.grad(log_odds(y, torch.tensor([1]), eps).sum(), y)[0][0, 1] for eps in (0.0, 1e-2)
    ]
    p = 1e-3
    assert float(slopes[0]) == pytest.approx(1)
    assert float(slopes[1]) == pytest.approx(p * (1 - p) * (1 / (p + 0.01) + 1 / (1 - p + 0.01)))
    assert float(slopes[1]) < 0.1


def chosen(variant: str, targets: Tensor, seed: int = 0, most: int = 0) -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(seed)
    cases = explained_cases(LOGITS, targets, variant, most, generator)
    return [(row, label) for row, label in cases.tolist()]


def test_cases_of_the_variants() -> None:
    labels = torch.tensor([1, 0, 4])
    logits = LOGITS
    every = [(row, label) for row in range(3) for label in range(5)]
    assert chosen("original", labels) == chosen("inputxgradient", labels) == every
    assert chosen("selective", labels) == [(row, int(logits[row].argmin())) for row in range(3)]
    some = chosen("original", labels, most=2)
    assert len(some) == 6
    assert {(0, 1), (1, 0), (2, 4)} <= set(some)
    top = logits.argmax(1).tolist()
    draws = [chosen("stochastic", labels, seed) for seed in range(60)]
    assert all([row for row, _ in cases] == [0, 1, 2] for cases in draws)
    hits = np.mean([label == top[row] for cases in draws for row, label in cases])
    assert 0.4 < hits < 0.6
    assert {label for cases in draws for _, label in cases} == set(range(5))


def test_stochastic_explains_a_class_that_is_there_half_of_the_time() -> None:
    targets = torch.zeros(3, 5)
    targets[0, 1] = targets[0, 2] = targets[1, 3] = 1  # the third image shows nothing
    draws = [chosen("stochastic", targets, seed) for seed in range(60)]
    found = np.array([[targets[row, label] for row, label in cases] for cases in draws])
    assert 0.35 < found[:, 0].mean() < 0.65
    assert 0.35 < found[:, 1].mean() < 0.65
    assert {cases[0][1] for cases in draws} == set(range(5))
    with pytest.raises(ConfigError, match="multi-label"):
        isnet_loss(mini_classifier(), photos(), targets, left(), variant="selective")


# ---- the whole loss


def slow_isnet(
    classifier: Classifier, images: Tensor, targets: Tensor, masks: Tensor, cases, *, p: float
) -> float:
    """Case by case, from the map method `lrp` of one image at a time."""
    total = 0.0
    for row, label in cases:
        tape = Tape(classifier, images[row : row + 1], needs={"input_gradient", "relevance"})
        r = relevance(tape, torch.tensor([[0, label]]), composite(tape, first="zb"))[0].numpy()
        m = masks[row].double().numpy()
        s = (np.abs(r) * m).sum()
        low, high = OPTIONS["cuts"][0]
        if s > low + high:
            valley = 1 + s - low - high
        else:
            valley = (min(s / low, 1) - 1) ** 2 + (max(s / low, high / low) - high / low) ** 2
        total += slow_background(r, m, 0.9, 1.0) + valley
    classification = float(F.cross_entropy(classifier(images), targets).detach())
    return (1 - p) * classification + p * total / len(cases)


@pytest.mark.parametrize("variant", ["original", "stochastic"])
def test_loss_is_that_of_its_maps(variant: str) -> None:
    classifier, images, labels, masks = mini_classifier(), photos(), torch.tensor([1, 0, 4]), left()
    masks[1, 60:] = True
    loss, found = isnet_loss(classifier, images, labels, masks, variant=variant, p=0.6, **OPTIONS)
    expected = slow_isnet(classifier, images, labels, masks, found["cases"].tolist(), p=0.6)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(found["masked"]) == 1
    assert float(found["share"]) == pytest.approx(
        float(background_share(found["relevance"], masks.double()[found["cases"][:, 0]][:, None]).mean())
    )


def test_input_times_gradient_variant() -> None:
    classifier, images, labels = mini_classifier(), photos(), torch.tensor([1, 0, 4])
    _, found = isnet_loss(classifier, images, labels, left(), variant="inputxgradient", **OPTIONS)
    x = images.clone().requires_grad_()
    for (row, label), values in zip(found["cases"].tolist(), found["relevance"], strict=True):
        (gradient,) = torch.autograd.grad(classifier(x)[row, label], x)
        torch.testing.assert_close(values, (images * gradient)[row])


def test_images_without_a_usable_mask_count_zero() -> None:
    classifier, images, labels = mini_classifier(), photos(), torch.tensor([1, 0, 4])
    masks = left()
    masks[1] = False
    masks[2] = True
    loss, found = isnet_loss(classifier, images, labels, masks, variant="original", p=1.0, **OPTIONS)
    alone, _ = isnet_loss(classifier, images[:1], labels[:1], masks[:1], variant="original", p=1.0, **OPTIONS)
    assert float(loss.detach()) == pytest.approx(float(alone.detach()) / 3, rel=1e-9)
    assert float(found["masked"]) == pytest.approx(1 / 3)
    gradients = torch.autograd.grad(loss, list(classifier.parameters()), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    nothing, _ = isnet_loss(classifier, images, labels, masks & False, variant="original", p=1.0, **OPTIONS)
    assert float(nothing.detach()) == 0


def test_masks_of_each_class_are_a_loop_over_classes() -> None:
    classifier = mini_classifier(task="multilabel")
    images, targets = photos(2), torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    masks = torch.zeros(2, 5, 96, 96, dtype=torch.bool)
    masks[0, 0, :40, :40] = masks[0, 3, 50:, 50:] = masks[1, 1, 20:60, 20:60] = True
    loss, found = isnet_loss(classifier, images, targets, masks, variant="original", p=1.0, **OPTIONS)
    parts = []
    for row, label in found["cases"].tolist():
        own = masks[row, label] if masks[row, label].any() else masks[row].any(0)
        r = found["relevance"][len(parts)][None]
        m = own[None, None].double()
        parts.append(background_loss(r, m, decay=0.9) + foreground_loss(r, m, OPTIONS["cuts"][0]))
    assert float(loss.detach()) == pytest.approx(float(torch.cat(parts).mean()), rel=1e-9)
    union, _ = isnet_loss(classifier, images, targets, masks.any(1), variant="original", p=1.0, **OPTIONS)
    assert float(union.detach()) != pytest.approx(float(loss.detach()), rel=1e-3)


def test_deep_supervision_pools_the_losses_of_layers() -> None:
    classifier, images, labels, masks = mini_classifier(), photos(), torch.tensor([1, 0, 4]), left()
    layers, cuts = ("layer1", "layer2"), ((0.5, 3.0), (0.1, 2.0), (0.2, 4.0))
    options = {"variant": "original", "p": 1.0, "decay": 0.9}
    loss, found = isnet_loss(
        classifier, images, labels, masks, layers=layers, cuts=cuts, layer_decay=0.8, **options
    )
    tape = Tape(classifier, images, needs={"input_gradient", "relevance"}, layers=layers)
    from wsod.maps.lrp import relevances

    maps = relevances(tape, found["cases"], composite(tape, first="zb"), layers)
    mask, terms = masks.double()[found["cases"][:, 0]][:, None], []
    for values, pair in zip(maps, cuts, strict=True):
        m = mask if values.shape[-1] == 96 else shrunk(mask, values)
        terms.append(background_loss(values, m, decay=0.9) + foreground_loss(values, m, pair))
    expected = np.mean(
        [slow_gwrp([float(t[case].detach()) for t in terms], 0.8) for case in range(len(mask))]
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="cuts"):
        isnet_loss(classifier, images, labels, masks, layers=layers, cuts=cuts[:2], **options)


@pytest.mark.parametrize("variant", ["original", "selective"])
def test_gradient_by_finite_differences(variant: str) -> None:
    classifier, images, labels, masks = mini_classifier(), photos(2), torch.tensor([1, 0]), left(2)
    parameters = [p for p in classifier.parameters() if p.ndim > 1]

    def loss() -> Tensor:
        return isnet_loss(
            classifier, images, labels, masks, variant=variant, decay=1.0, cuts=((0.01, 0.02),), hybrid=False
        )[0]

    check_slope(loss, parameters, torch.autograd.grad(loss(), parameters))


def test_without_heatmap_loss_it_is_plain_training() -> None:
    """P = 0 in training mode: the same gradients, and batch norm's statistics move once, as in one pass."""
    images, labels = photos(), torch.tensor([1, 0, 4])
    ours, plain = mini_classifier(), mini_classifier()
    ours.train()
    plain.train()
    loss, _ = isnet_loss(ours, images, labels, left(), p=0.0, **OPTIONS)
    loss.backward()
    F.cross_entropy(plain(images), labels).backward()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_relevance_does_not_go_from_image_to_image_in_training_mode() -> None:
    classifier, images, labels = mini_classifier(), photos(), torch.tensor([1, 0, 4])
    classifier.train()
    x = images.clone()
    _, found = isnet_loss(classifier, x, labels, left(), variant="original", **OPTIONS)
    tape = Tape(classifier, images, needs={"input_gradient", "relevance"}, eval_mode=False)
    mode = tape.mode
    assert mode is not None
    with mode.switch.set(composite(tape)):
        (leak,) = torch.autograd.grad(tape.logits[1, 2], tape.images)
    assert not leak[0].any()
    assert not leak[2].any()
    assert leak[1].any()
    assert torch.isfinite(found["relevance"]).all()


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_behind_also_after_an_exception(training: bool) -> None:
    classifier, images, labels = mini_classifier(), photos(), torch.tensor([1, 0, 4])
    classifier.train(training)
    before = F.cross_entropy(mini_classifier().train(training)(images), labels)
    for p in classifier.parameters():
        p.grad = None
    with pytest.raises(ConfigError, match="variant"):
        isnet_loss(classifier, images, labels, left(), variant="dual", **OPTIONS)  # type: ignore[arg-type]

    def fail(module: nn.Module, inputs: object) -> None:
        raise IndexError("inside the model")

    handle = classifier.network.fc.register_forward_pre_hook(fail)
    with pytest.raises(IndexError, match="inside"):
        isnet_loss(classifier, images, labels, left(), **OPTIONS)
    handle.remove()
    assert all(p.grad is None for p in classifier.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in classifier.modules())
    assert classifier.training == training
    classifier.load_state_dict(mini_classifier().state_dict())
    after = F.cross_entropy(classifier(images), labels)
    assert torch.equal(before, after)
    ours = torch.autograd.grad(after, list(classifier.parameters()))
    theirs = mini_classifier().train(training)
    expected = torch.autograd.grad(F.cross_entropy(theirs(images), labels), list(theirs.parameters()))
    assert all(map(torch.equal, ours, expected))


def test_other_networks_are_refused() -> None:
    classifier = mini_classifier(activation=nn.GELU)
    with pytest.raises(ModelError, match="GELU"):
        isnet_loss(classifier, photos(), torch.tensor([1, 0, 4]), left(), **OPTIONS)


def test_tuned_cuts_are_those_of_the_maps() -> None:
    classifier, labels = mini_classifier(), torch.tensor([1, 0, 4])
    batches = [(photos(seed=0), labels), (photos(seed=1), labels)]
    found = tune_cuts(classifier, batches, variant="original", layers=("layer1",))
    totals = [
        isnet_loss(classifier, images, labels, left(), variant="original", **OPTIONS)[1]["relevance"].abs()
        for images, labels in batches
    ]
    expected = cuts_of(torch.cat(totals).sum((1, 2, 3)))
    assert found[0] == pytest.approx(expected)
    assert len(found) == 2
    with pytest.raises(ConfigError, match="batch"):
        tune_cuts(classifier, [])


# ---- the objective


def a_batch(**places) -> Batch:
    return Batch(photos(3, dtype=torch.float32), torch.tensor([1, 0, 4]), (5, 6, 7), **places)


def test_objective_reads_masks_or_boxes() -> None:
    classifier = mini_classifier(dtype=torch.float32)
    masks = torch.zeros(3, 5, 96, 96, dtype=torch.bool)
    masks[0, 1, 20:70, 10:50] = masks[1, 0, 20:70, 10:50] = True
    void = torch.zeros(3, 96, 96, dtype=torch.bool)
    batch = a_batch(masks=masks, void=void, has_mask=torch.tensor([True, True, False]))
    boxes = (torch.tensor([[10.0, 20, 50, 70, 1]]), torch.tensor([[10.0, 20, 50, 70, 0]]), torch.zeros(0, 5))
    values = [
        ISNet(variant="original", source="masks")(classifier, batch, 0),
        ISNet(variant="original", source="boxes")(classifier, a_batch(boxes=boxes), 0),
    ]
    assert float(values[0]["isnet/masked"]) == pytest.approx(2 / 3)
    assert float(values[0]["isnet"].detach()) == pytest.approx(float(values[1]["isnet"].detach()), rel=1e-6)
    assert ISNet().requires == {"labels", "masks"}
    assert ISNet(source="boxes").requires == {"labels", "boxes"}
    assert ISNet().learned_from == ("image labels", "masks")
    assert ISNet(source="boxes").learned_from == ("image labels", "boxes")
    for source in ("masks", "boxes"):
        with pytest.raises(ConfigError, match=source):
            foreground_of(a_batch(), source)


def test_void_pixels_are_not_punished() -> None:
    masks, void = torch.zeros(3, 5, 96, 96, dtype=torch.bool), torch.zeros(3, 96, 96, dtype=torch.bool)
    masks[0, 1, :10] = True
    void[:, 10:20] = True
    batch = a_batch(masks=masks, void=void, has_mask=torch.ones(3, dtype=torch.bool))
    found = foreground_of(batch)
    assert found[0, :20].all()
    assert not found[0, 20:].any()
    assert not found[1:].any()  # nothing is known of an image that is void alone
    own = foreground_of(batch, per_class=True)
    assert own[0, 1, :20].all()
    assert not own[0, 0].any()


def test_draws_depend_on_the_images_and_the_step_alone() -> None:
    classifier = mini_classifier(dtype=torch.float32)
    masks = torch.zeros(3, 5, 96, 96, dtype=torch.bool)
    masks[:, 1, :40] = True
    batch = a_batch(masks=masks)
    values = []
    for step, seed in ((0, 1), (0, 2), (1, 1), (2, 1), (3, 1)):
        torch.manual_seed(seed)
        values.append(float(ISNet()(classifier, batch, step)["isnet"].detach()))
    assert values[0] == values[1]
    assert len(set(values)) > 1


def test_registered_with_its_options() -> None:
    assert OBJECTIVES["isnet"] is ISNet
    assert CLASSES  # what the small network tells apart
    begun = ISNet(tune=True, variant="original").begun(mini_classifier(dtype=torch.float32), [a_batch()])
    assert not begun.tune
    assert begun.cuts != ISNet().cuts
    assert ISNet().begun(mini_classifier(), []) == ISNet()


@pytest.mark.slow
def test_cuts_are_tuned_once_and_kept_when_a_run_goes_on(tmp_path: Path) -> None:
    settings_ = [
        "train.steps=3",
        "train.batch=4",
        "train.save_every=1",
        "train.select=last",
        "data.val_images=4",
        "model.size=32",
        "stages.finetune.objectives.isnet.tune=true",
    ]
    overrides = {"data": {"spec": "shapes:simple=true,size=48,count=12"}}
    config = load_config(objectives=["isnet"], settings=settings_, overrides=overrides)

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 2:
            raise RuntimeError("power cut")

    whole = finetune(config, tmp_path / "whole", device="cpu")
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(config, tmp_path / "cut", device="cpu", progress=stop)
    state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert state["step"] == 1
    cuts = state["begun"]["isnet"]["cuts"]
    assert cuts != [[1.0, 25.0]]
    assert not state["begun"]["isnet"]["tune"]
    again = resume(tmp_path / "cut", device="cpu")
    one, two = (torch.load(path, weights_only=True) for path in (whole, again))
    assert all(torch.equal(value, two["state"][key]) for key, value in one["state"].items())
    assert one["supervision"] == ["image labels", "masks"]


def test_p_rises_from_plain_training() -> None:
    classifier, targets = mini_classifier(), torch.tensor([1, 0])
    masks = torch.zeros(2, len(CLASSES), 96, 96, dtype=torch.bool)
    masks[0, 1], masks[1, 0] = left(2)
    batch = Batch(photos(2), targets, (4, 7), masks=masks)
    ramped = ISNet(p=0.8, p_ramp=(10, 20), decay=0.9)
    plain = ramped(classifier, batch, 10)
    assert torch.equal(plain["isnet"], F.cross_entropy(classifier(batch.images), targets))
    for step, p in ((15, 0.4), (20, 0.8), (500, 0.8)):
        found, expected = (x(classifier, batch, step)["isnet"] for x in (ramped, ISNet(p=p, decay=0.9)))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    with pytest.raises(ConfigError, match="p_ramp"):
        ISNet(p_ramp=(5, 5))


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
@pytest.mark.slow
def test_what_was_trained_is_a_plain_torchvision_network(name: str, tmp_path: Path) -> None:
    """Nothing of the method is left at test time: the weights fit torchvision's class, with equal logits."""
    torch.manual_seed(0)
    classifier = build_classifier(name, CLASSES, size=64).train()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 3, 0, 4])
    optimiser = torch.optim.SGD(classifier.parameters(), lr=1e-3)
    loss, _ = isnet_loss(classifier, images, labels, left(4)[:, 16:80, 16:80])
    loss.backward()
    nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
    optimiser.step()
    save_checkpoint(tmp_path / "ft.pt", classifier.eval(), recipe={}, metrics={}, provenance={})
    plain = getattr(torchvision.models, name)(weights=None, num_classes=len(CLASSES))
    plain.load_state_dict(torch.load(tmp_path / "ft.pt", weights_only=True)["state"])
    with torch.no_grad():
        assert torch.isfinite(classifier(images)).all()
        assert torch.equal(plain.eval()(images), classifier(images))
        assert torch.equal(plain(images), load_classifier(tmp_path / "ft.pt")(images))
