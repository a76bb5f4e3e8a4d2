from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from atcon import consistency_loss
from atcon.objectives import OBJECTIVES
from atcon.objectives.masking import soft_mask
from atcon.objectives.similarity import SIMILARITIES, squashed
from tests.atcon.networks import mini_classifier, photos
from tests.atcon.slow_atcon import grad_cam, guided, slow_loss
from wsod.errors import ConfigError, ModelError


def num(value):
    """A scalar tensor, possibly with a graph, as a number."""
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def gradients(loss, classifier):
    return torch.autograd.grad(loss, list(classifier.parameters()), allow_unused=True)


def flat(grads, classifier):
    pairs = zip(grads, classifier.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def assert_same_gradients(ours, theirs, classifier, tolerance):
    scale = flat(theirs, classifier).abs().max()
    assert scale > 0
    for (name, parameter), a, b in zip(classifier.named_parameters(), ours, theirs, strict=True):
        a = torch.zeros_like(parameter) if a is None else a
        b = torch.zeros_like(parameter) if b is None else b
        assert (a - b).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("scale", ["raw", "std"])
@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
def test_equals_the_loop_over_images(scale, size):
    classifier, images = mini_classifier(), photos(4, size)
    assert len(set(classifier(images).argmax(1).tolist())) > 1  # several predicted classes in the batch
    slope = 40.0 if scale == "raw" else 4.0
    loss, found = consistency_loss(classifier, images, mask_scale=scale, mask_slope=slope)
    twin, each = slow_loss(classifier, images, scale=scale, slope=slope)
    assert abs(num(loss - twin)) < 1e-10
    assert found["consistency"].tolist() == pytest.approx(each, abs=1e-10)
    assert_same_gradients(gradients(loss, classifier), gradients(twin, classifier), classifier, 1e-10)


def test_equals_the_loop_for_one_image_in_float32():
    classifier, images = mini_classifier(torch.float32), photos(1, dtype=torch.float32)
    loss, _ = consistency_loss(classifier, images)
    twin, _ = slow_loss(classifier, images)
    assert abs(num(loss - twin)) < 1e-5
    assert_same_gradients(gradients(loss, classifier), gradients(twin, classifier), classifier, 1e-4)


def test_plain_gradient_and_given_labels_equal_the_loop():
    classifier, images, labels = mini_classifier(), photos(3), torch.tensor([4, 0, 2])
    loss, found = consistency_loss(classifier, images, labels, attribution="gradient")
    twin, _ = slow_loss(classifier, images, labels, plain=True)
    assert found["classes"].tolist() == [4, 0, 2]
    assert abs(num(loss - twin)) < 1e-10
    assert_same_gradients(gradients(loss, classifier), gradients(twin, classifier), classifier, 1e-10)


def directional(classifier, value, direction, eps):
    parameters = list(classifier.parameters())
    results = []
    for sign in (eps, -2 * eps):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(sign * d)
        results.append(num(value().detach()))
    with torch.no_grad():
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.add_(eps * d)
    return (results[0] - results[1]) / (2 * eps)


@pytest.mark.parametrize(
    ("activation", "attribution", "eps", "length", "tolerance"),
    # Guided gates are steps: only differences that cross none are right. Without gates |gradient| still has
    # kinks, as many as pixels: the step is 2e-5 long in all, a tenth of what 1e-6 times a normal draw is.
    [(nn.ReLU, "guided", 1e-8, None, 1e-5), (nn.Softplus, "gradient", 1e-6, 20.0, 1e-6)],
)
def test_gradient_is_that_of_finite_differences(activation, attribution, eps, length, tolerance):
    classifier, images = mini_classifier(activation=activation), photos(2)
    classes = classifier(images).argmax(1)

    def value():
        return consistency_loss(
            classifier, images, classes, attribution=attribution, mask_scale="std", mask_slope=4.0
        )[0]

    grads = gradients(value(), classifier)
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in classifier.parameters()]
        if length is not None:
            norm = flat(direction, classifier).norm()
            direction = [length * d / norm for d in direction]
        expected = sum(num((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)
        measured = directional(classifier, value, direction, eps)
        assert measured == pytest.approx(expected, rel=tolerance)


def test_detaching_changes_the_gradient_and_not_the_value():
    classifier, images = mini_classifier(), photos(3)
    options = {"mask_scale": "std", "mask_slope": 4.0}
    whole, _ = consistency_loss(classifier, images, **options)
    expected = flat(gradients(whole, classifier), classifier)
    for switch in ("detach_mask", "detach_reference"):
        loss, _ = consistency_loss(classifier, images, **options, **{switch: True})
        assert num(loss) == num(whole)
        got = flat(gradients(loss, classifier), classifier)
        assert torch.nn.functional.cosine_similarity(got, expected, 0) < 0.9999


def test_a_detached_mask_is_a_constant():
    """The loss with the mask detached has the gradient of one whose mask is a number."""
    classifier, images = mini_classifier(), photos(2)
    loss, found = consistency_loss(classifier, images, detach_mask=True)
    total = 0
    for x, mask, label in zip(images, found["mask"], found["classes"], strict=True):
        a, _ = squashed(grad_cam(classifier, x[None], int(label))[None])
        b, _ = squashed(grad_cam(classifier, (x * mask)[None], int(label))[None])
        total = total - SIMILARITIES["pearson"](a, b)[0] / len(images)
    assert_same_gradients(gradients(loss, classifier), gradients(total, classifier), classifier, 1e-10)


def test_images_do_not_see_each_other():
    classifier, images = mini_classifier(), photos(4)
    loss, found = consistency_loss(classifier, images)
    order = torch.tensor([2, 0, 3, 1])
    shuffled, again = consistency_loss(classifier, images[order])
    assert num(shuffled) == pytest.approx(num(loss), abs=1e-12)
    assert again["consistency"].tolist() == pytest.approx(found["consistency"][order].tolist(), abs=1e-12)
    _, doubled = consistency_loss(classifier, torch.cat([images[:1], images]))
    assert doubled["consistency"][1:].tolist() == pytest.approx(found["consistency"].tolist(), abs=1e-12)


def test_invariances_of_the_head():
    classifier, images = mini_classifier(), photos(3)
    std = {"mask_scale": "std", "mask_slope": 4.0}
    raw, scaled = (num(consistency_loss(classifier, images, **o)[0]) for o in ({}, std))
    with torch.no_grad():
        classifier.network.fc.bias.add_(3.0)
    assert num(consistency_loss(classifier, images)[0]) == pytest.approx(raw, abs=1e-12)
    with torch.no_grad():
        classifier.network.fc.weight.mul_(7.0)
        classifier.network.fc.bias.mul_(7.0)
    assert num(consistency_loss(classifier, images, **std)[0]) == pytest.approx(scaled, abs=1e-10)
    assert abs(num(consistency_loss(classifier, images)[0]) - raw) > 1e-4


def test_soft_mask():
    saliency = torch.rand(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = [num(g.mean() + g.std() / 2) for g in saliency]  # torch's std is the unbiased one
    mask = soft_mask(saliency, 40.0)
    assert bool(((mask > 0) & (mask < 1)).all())
    for g, t, m in zip(saliency, theta, mask, strict=True):
        torch.testing.assert_close(m, torch.sigmoid(40.0 * (g - t)), rtol=0, atol=1e-14)
    assert bool((soft_mask(saliency, 0.0) == 0.5).all())
    hard = soft_mask(saliency, 1e4)
    expected = torch.stack([(g > t).double() for g, t in zip(saliency, theta, strict=True)])
    assert num((hard - expected).abs().mean()) < 0.01
    scaled = soft_mask(saliency, 4.0, "std")
    torch.testing.assert_close(soft_mask(1000 * saliency, 4.0, "std"), scaled)
    assert bool((soft_mask(torch.ones(1, 3, 3), 4.0, "std") == 0.5).all())
    # mean 3 and std 2: the cell of 4 is where G equals θ
    edge = torch.tensor([[[3 - 5**0.5, 2.0], [4.0, 3 + 5**0.5]]], dtype=torch.float64)
    for scale in ("raw", "std"):
        assert num(soft_mask(edge, 1e3, scale)[0, 1, 0]) == pytest.approx(0.5, abs=1e-12)


def test_slope_zero_halves_the_image():
    classifier, images = mini_classifier(), photos(2)
    _, found = consistency_loss(classifier, images, mask_slope=0.0)
    for x, label, cam in zip(images, found["classes"], found["masked_maps"], strict=True):
        torch.testing.assert_close(grad_cam(classifier, x[None] / 2, int(label)).detach(), cam)


def test_constant_maps_are_counted_and_carry_no_gradient():
    classifier = mini_classifier()
    nn.init.zeros_(classifier.network.fc.weight)
    for scale in ("raw", "std"):
        for similarity in SIMILARITIES:
            loss, found = consistency_loss(classifier, photos(3), mask_scale=scale, similarity=similarity)
            assert num(loss) == 0.0
            assert int(found["invalid"]) == 3
            grads = flat(gradients(loss, classifier), classifier)
            assert bool((grads == 0).all())


def test_a_constant_map_leaves_the_other_images_alone():
    classifier, images = mini_classifier(), photos(2)
    with torch.no_grad():
        classifier.network.fc.weight[0] = 0.0
    labels = torch.tensor([0, 1])
    loss, found = consistency_loss(classifier, images, labels)
    alone, _ = consistency_loss(classifier, images[1:], labels[1:])
    assert int(found["invalid"]) == 1
    assert num(loss) == pytest.approx(num(alone) / 2)
    grads = flat(gradients(loss, classifier), classifier)
    torch.testing.assert_close(grads, flat(gradients(alone, classifier), classifier) / 2)


def test_a_grey_image_gives_no_nan():
    classifier = mini_classifier()
    for scale in ("raw", "std"):
        loss, _ = consistency_loss(classifier, torch.zeros(1, 3, 96, 96).double(), mask_scale=scale)
        assert bool(flat(gradients(loss, classifier), classifier).isfinite().all())


def test_nan_weights_are_seen():
    classifier = mini_classifier()
    with torch.no_grad():
        classifier.network.layer1[0].conv2.weight[0] = float("nan")
    assert not bool(consistency_loss(classifier, photos(1))[0].isfinite())


def snapshot(classifier):
    return (
        [(name, id(module), module.training) for name, module in classifier.named_modules()],
        [
            len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
            for m in classifier.modules()
        ],
        {name: value.clone() for name, value in classifier.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in classifier.parameters()],
        torch.get_rng_state(),
    )


def assert_unchanged(before, after):
    assert before[:2] == after[:2]
    assert all(torch.equal(before[2][name], after[2][name]) for name in before[2])
    for old, new in zip(before[3], after[3], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert torch.equal(before[4], after[4])


def test_nothing_is_left_behind():
    classifier, images = mini_classifier(dropout=0.5), photos(2)
    classifier.network.dropout.train()
    classifier(images).sum().backward()
    before = snapshot(classifier)
    first, _ = consistency_loss(classifier, images)
    second, _ = consistency_loss(classifier, images)
    assert_unchanged(before, snapshot(classifier))
    assert num(first) == num(second)  # dropout was off
    assert not images.requires_grad


@pytest.mark.parametrize("call", [1, 2])
def test_nothing_is_left_behind_after_an_exception(call, monkeypatch):
    classifier, images = mini_classifier(dropout=0.5), photos(2)
    classifier.network.dropout.train()
    before, calls = snapshot(classifier), []

    def broken(x):
        calls.append(x)
        if len(calls) == call:
            raise RuntimeError("out of memory")
        return x.mean((2, 3))

    monkeypatch.setattr(classifier.network.dropout, "forward", lambda x: broken(x[..., None, None]))
    with pytest.raises(RuntimeError, match="out of memory"):
        consistency_loss(classifier, images)
    monkeypatch.undo()
    assert_unchanged(before, snapshot(classifier))


def test_batch_statistics_are_refused():
    classifier = mini_classifier()
    classifier.network.layer1[0].bn2.train()
    with pytest.raises(ModelError, match=r"layer1\.0\.bn2.*frozen"):
        consistency_loss(classifier, photos(2))


def test_a_network_without_relu_is_refused_by_guided_backpropagation():
    classifier = mini_classifier(activation=nn.GELU)
    with pytest.raises(ModelError, match="gradient"):
        consistency_loss(classifier, photos(1))
    assert bool(consistency_loss(classifier, photos(1), attribution="gradient")[0].isfinite())


def test_the_shared_forward_is_a_guided_pass_of_its_own():
    classifier, images = mini_classifier(), photos(3)
    for scale, slope in (("raw", 40.0), ("std", 4.0)):
        _, found = consistency_loss(classifier, images, mask_scale=scale, mask_slope=slope)
        own = [guided(classifier, x[None], int(c)) for x, c in zip(images, found["classes"], strict=True)]
        masks = soft_mask(torch.stack(own).detach(), slope, scale)
        torch.testing.assert_close(found["mask"], masks, rtol=0, atol=1e-12)


def test_every_relu_is_passed():
    classifier = mini_classifier()
    relus = sum(isinstance(module, nn.ReLU) for module in classifier.modules())
    assert int(consistency_loss(classifier, photos(1))[1]["relu_calls"]) == relus


def test_the_map_is_cam_for_a_pooled_linear_head():
    classifier, images = mini_classifier(), photos(2)
    _, found = consistency_loss(classifier, images)
    with torch.no_grad():
        network = classifier.network
        features = network.layer2(network.layer1(network.act(network.bn1(network.conv1(images)))))
        weights = network.fc.weight[found["classes"]]
        cam = torch.einsum("nd,ndhw->nhw", weights, features) / features[0, 0].numel()
    assert num((found["maps"] - cam).abs().max()) < 1e-12


def test_classes_come_from_what_labels_allow():
    classifier, images = mini_classifier(), photos(6)
    logits = classifier(images)
    assert consistency_loss(classifier, images)[1]["classes"].tolist() == logits.argmax(1).tolist()
    allowed = torch.zeros_like(logits)
    allowed[:, 1:3] = 1
    best = logits[:, 1:3].argmax(1) + 1
    assert consistency_loss(classifier, images, allowed)[1]["classes"].tolist() == best.tolist()
    draws = [
        consistency_loss(
            classifier, images, allowed, target="random", generator=torch.Generator().manual_seed(seed)
        )[1]["classes"]
        for seed in (0, 0, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert set(torch.cat(draws).tolist()) == {1, 2}
    with pytest.raises(ConfigError, match="no class"):
        consistency_loss(classifier, images, torch.zeros_like(logits))
    with pytest.raises(ConfigError, match="shape"):
        consistency_loss(classifier, images, torch.zeros(6, 9))
    with pytest.raises(ConfigError, match="pearson"):
        consistency_loss(classifier, images, similarity="inner")


def test_options_change_what_they_say():
    classifier, images = mini_classifier(), photos(2)
    plain = consistency_loss(classifier, images, mask_scale="std", mask_slope=4.0)[1]
    blurred = consistency_loss(classifier, images, mask_scale="std", mask_slope=4.0, mask_fill="blur")[1]
    assert torch.equal(plain["mask"], blurred["mask"])
    assert not torch.allclose(plain["masked_maps"], blurred["masked_maps"])
    rectified = consistency_loss(classifier, images, cam_relu=True)[1]
    torch.testing.assert_close(rectified["maps"], plain["maps"].relu())
    expected = guided(classifier, images[:1], int(plain["classes"][0])).detach()
    assert num(plain["saliency_mean"][0]) == pytest.approx(num(expected.mean()))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_map_is_like_itself(name):
    maps = torch.randn(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, valid = squashed(maps)
    assert bool(valid.all())
    torch.testing.assert_close(SIMILARITIES[name](a, a), torch.ones(3).double())
    opposite, _ = squashed(-maps)
    assert bool((SIMILARITIES[name](a, opposite) < 0.9).all())
    if name == "pearson":
        torch.testing.assert_close(SIMILARITIES[name](a, opposite), -torch.ones(3).double())


def naive_ssim(a, b):
    total, n = 0.0, a.shape[0]
    weights = [
        [2.718281828459045 ** (-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)
    ]
    norm = sum(map(sum, weights))
    for y in range(n):
        for x in range(n):
            sums = [0.0] * 5
            for i in range(11):
                for j in range(11):
                    r, c = y + i - 5, x + j - 5
                    if 0 <= r < n and 0 <= c < n:
                        w, p, q = weights[i][j] / norm, num(a[r, c]), num(b[r, c])
                        for k, v in enumerate((p, q, p * p, q * q, p * q)):
                            sums[k] += w * v
            p, q, pp, qq, pq = sums
            top = (2 * p * q + 1e-4) * (2 * (pq - p * q) + 9e-4)
            total += top / ((p * p + q * q + 1e-4) * (pp - p * p + qq - q * q + 9e-4))
    return total / n**2


def test_ssim_equals_its_naive_twin():
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 6, 6, dtype=torch.float64, generator=random)
    assert num(SIMILARITIES["ssim"](a, b)[0]) == pytest.approx(naive_ssim(a[0], b[0]), abs=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"detach_mask": True}, {"mask_scale": "std", "mask_slope": 4.0}], ids=str
)
@pytest.mark.slow
def test_training_raises_consistency(options):
    classifier = mini_classifier(torch.float32)
    images = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.sub_(0.25)  # fewer units fire, and what is masked shows
    optimiser = torch.optim.Adam(classifier.parameters(), 1e-4)
    history = []
    for _ in range(16):
        loss, found = consistency_loss(classifier, images, **options)
        history.append(num(found["consistency"].mean()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert history[15] - history[0] > 0.2, history
    if options.get("mask_scale") == "std":  # the mask has not become a constant half
        assert abs(num(found["mask_mean"].mean()) - 0.5) > 0.2
        assert num(found["mask_std"].mean()) > 0.1


def test_parts_of_a_batch_add_up_to_it():
    classifier, images = mini_classifier(), photos(5)
    whole, _ = consistency_loss(classifier, images)
    expected = flat(gradients(whole, classifier), classifier)
    twin = copy.deepcopy(classifier)
    for part in images.split((2, 3)):
        loss, _ = consistency_loss(twin, part)
        (loss * (len(part) / len(images))).backward()
    got = flat([p.grad for p in twin.parameters()], twin)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * num(expected.abs().max()) + 1e-14)


def test_statistics_stay_in_float32_under_autocast():
    classifier, images = mini_classifier(torch.float32), photos(2, dtype=torch.float32)
    exact, _ = consistency_loss(classifier, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found = consistency_loss(classifier, images)
    assert loss.dtype == found["mask"].dtype == torch.float32
    assert num(loss) == pytest.approx(num(exact), abs=0.1)
    assert bool(flat(gradients(loss, classifier), classifier).isfinite().all())


def test_the_objective_reads_labels_only_if_told():
    class Unlabelled:
        images = photos(2)

        def __len__(self):
            return 2

        @property
        def targets(self):
            raise AssertionError("the objective read labels")

    classifier = mini_classifier()
    objective = OBJECTIVES["atcon"]()
    assert objective.requires == {"second_order"}
    terms = objective(classifier, Unlabelled(), 0)
    assert num(terms["atcon"]) == pytest.approx(-num(terms["atcon/consistency"]))
    assert all(not value.requires_grad for name, value in terms.items() if name != "atcon")
    told = OBJECTIVES["atcon"](use_labels=True)
    assert told.requires == {"second_order", "labels"}
    with pytest.raises(AssertionError, match="read labels"):
        told(classifier, Unlabelled(), 0)


def test_random_mask_control_masks_as_much_but_elsewhere():
    classifier, images = mini_classifier(), photos(3)
    _, found = consistency_loss(classifier, images)
    _, control = consistency_loss(
        classifier, images, control="random_mask", generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(control["maps"], found["maps"])
    for mine, moved in zip(found["mask"], control["mask"], strict=True):
        torch.testing.assert_close(mine.flatten().sort().values, moved.flatten().sort().values)
        # the same mask, rolled: at the right offset the two are equal again
        y, x = divmod(int((moved == mine.max()).flatten().nonzero()[0]), mine.shape[1])
        v, u = divmod(int(mine.argmax()), mine.shape[1])
        torch.testing.assert_close(moved.roll((v - y, u - x), (0, 1)), mine)
        assert not torch.equal(mine, moved)
    assert (found["masked_maps"] - control["masked_maps"]).abs().max() > 0


def test_shuffled_maps_control_compares_with_the_next_image():
    classifier, images = mini_classifier(), photos(3)
    _, found = consistency_loss(classifier, images, control="shuffled_maps")
    maps, masked = squashed(found["maps"])[0], squashed(found["masked_maps"])[0]
    expected = [
        torch.corrcoef(torch.stack([maps[i].flatten(), masked[(i + 1) % 3].flatten()]))[0, 1]
        for i in range(3)
    ]
    assert found["consistency"].tolist() == pytest.approx([float(r) for r in expected], abs=1e-10)
    with pytest.raises(ConfigError, match="two images"):
        consistency_loss(classifier, images[:1], control="shuffled_maps")
