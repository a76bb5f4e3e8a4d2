"""ATCON's options and its baseline against loops over images, value and every parameter gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.video import r3d_18

from atcon import consistency_loss, layer_attention_loss
from atcon.objectives import OBJECTIVES
from atcon.objectives.layer_attention import inner_layer
from atcon.objectives.saliency import ATTRIBUTIONS
from atcon.objectives.similarity import SIMILARITIES, ssim
from tests.atcon import slow_variants as slow
from tests.atcon.networks import mini_classifier, photos
from tests.atcon.test_consistency import assert_same_gradients, flat, gradients, num
from wsod.errors import ConfigError, ModelError
from wsod.maps.guided import ReluMode
from wsod.models.classifier import Classifier

STD = {"mask_scale": "std", "mask_slope": 4.0}


def assert_same(classifier, loss, twin, tolerance=1e-10):
    assert abs(num(loss - twin)) < tolerance
    assert_same_gradients(gradients(loss, classifier), gradients(twin, classifier), classifier, tolerance)


def test_integrated_gradients_mask():
    classifier, images = mini_classifier(), photos(3)
    loss, _ = consistency_loss(classifier, images, attribution="ig", samples=4, **STD)
    twin = slow.masked_by(
        classifier, images, lambda x, label: slow.integrated(classifier, x, label, 4), 4.0, "std"
    )
    assert_same(classifier, loss, twin)


def test_integrated_gradients_are_complete():
    """Their sum is the score's rise from the baseline to the image, the better the more points."""
    classifier, images = mini_classifier(), photos(2, (48, 48))
    with torch.no_grad():
        label = classifier(images).argmax(1)
        rise = (classifier(images) - classifier(torch.zeros_like(images))).gather(1, label[:, None])[:, 0]
    from atcon.objectives.saliency import Pass, attribute, opened

    tape = opened(classifier, images, "ig", "calls")
    cases = torch.stack([torch.arange(2), label], 1)
    errors = [
        (attribute("ig", Pass(tape, cases, False, samples)).sum((1, 2, 3)) - rise).abs().max().item()
        for samples in (4, 96)
    ]
    assert errors[1] < 0.05 * rise.abs().min().item()
    assert errors[1] < errors[0]


def test_integrated_gradients_as_published_are_zero():
    """A softmax over the steps sums to 1 over the steps: nothing to differentiate, a mask of one half."""
    classifier, images = mini_classifier(), photos(2)
    _, found = consistency_loss(classifier, images, attribution="ig", samples=5, paper_compat=True)
    _, meant = consistency_loss(classifier, images, attribution="ig", samples=5)
    assert found["saliency_mean"].max() < 1e-12 * meant["saliency_mean"].min()
    torch.testing.assert_close(found["mask"], torch.full_like(found["mask"], 0.5))
    with pytest.raises(ConfigError, match="6 classes"):
        consistency_loss(classifier, images, attribution="ig", paper_compat=True)


def test_smoothgrad_mask():
    classifier, images = mini_classifier(), photos(2)
    seeded = torch.Generator().manual_seed(3)
    loss, _ = consistency_loss(
        classifier, images, attribution="smoothgrad", samples=3, noise=0.1, generator=seeded, **STD
    )
    draws = torch.randn(3, *images.shape[1:], generator=torch.Generator().manual_seed(3)).double()
    twin = slow.masked_by(
        classifier, images, lambda x, label: slow.smooth(classifier, x, label, draws, 0.1), 4.0, "std"
    )
    assert_same(classifier, loss, twin)


@pytest.mark.parametrize("scale", ["raw", "std"])
def test_reverse_direction(scale):
    classifier, images = mini_classifier(), photos(2, (64, 96))
    slope = 32.0 if scale == "raw" else 4.0
    loss, found = consistency_loss(
        classifier, images, direction="reverse", mask_scale=scale, mask_slope=slope
    )
    assert_same(classifier, loss, slow.reverse(classifier, images, slope, scale))
    assert found["maps"].shape == found["mask"].shape == (2, 64, 96)


@pytest.mark.parametrize("attribution", sorted(ATTRIBUTIONS))
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_detaching_in_every_variant(attribution, direction):
    """The value stays, the gradient changes, and a detached mask keeps no graph of the attribution."""
    classifier, images = mini_classifier(), photos(2)
    options = {"attribution": attribution, "direction": direction, "samples": 2, **STD}

    def loss(**more):
        return consistency_loss(
            classifier, images, generator=torch.Generator().manual_seed(0), **options, **more
        )

    # a ReLU network's gradient does not move with its input, but for the gates: the second attribution gives
    # the mask no gradient, except by the factor x of integrated gradients; deconvnet's does not see the input
    still = attribution != "ig"
    whole, found = loss()
    assert found["consistency"].abs().max() <= 1
    expected = flat(gradients(whole, classifier), classifier)
    assert expected.isfinite().all()
    for switch in ("detach_mask", "detach_reference"):
        other, _ = loss(**{switch: True})
        assert num(other) == pytest.approx(num(whole), abs=1e-12)
        got = flat(gradients(other, classifier), classifier)
        change = (got - expected).abs().max()
        if direction == "reverse" and (attribution == "deconvnet" or (still and switch == "detach_mask")):
            assert change <= 1e-10 * expected.abs().max()
        else:
            assert change > 1e-6 * expected.abs().max()


def nodes(tensor):
    """All autograd nodes a tensor hangs on."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return seen


def test_a_detached_mask_leaves_no_node_of_the_guided_pass():
    classifier, images = mini_classifier(), photos(2)
    whole, _ = consistency_loss(classifier, images)
    less, _ = consistency_loss(classifier, images, detach_mask=True)

    def second_order(loss):
        """Derivatives of convolutions' derivatives: only a differentiated backward pass has them."""
        return sum("ConvolutionBackwardBackward" in node.name() for node in nodes(loss))

    assert second_order(whole) > 0
    assert second_order(less) == 0
    assert len(nodes(less)) < len(nodes(whole))


class Clamp(nn.ReLU):
    """A ReLU that no function call gives away."""

    def forward(self, x):
        return x.clamp(min=0)


class Leaky(nn.LeakyReLU):
    def __init__(self):
        super().__init__(0.1)

    def forward(self, x):
        return torch.where(x > 0, x, 0.1 * x)


@pytest.mark.parametrize(("hidden", "plain"), [(Clamp, nn.ReLU), (Leaky, lambda: nn.LeakyReLU(0.1))])
def test_relus_found_by_their_modules(hidden, plain):
    classifier, images = mini_classifier(activation=hidden), photos(2)
    with pytest.raises(ModelError, match="no ReLU call"):
        consistency_loss(classifier, images)
    modules = [id(module) for module in classifier.modules()]
    loss, found = consistency_loss(classifier, images, rectifiers="modules")
    assert [id(module) for module in classifier.modules()] == modules
    other = mini_classifier(activation=plain)
    twin, expected = consistency_loss(other, images)
    assert num(loss) == num(twin)
    assert int(found["relu_calls"]) == int(expected["relu_calls"])
    assert torch.equal(flat(gradients(loss, classifier), classifier), flat(gradients(twin, other), other))


def test_modules_are_put_back_after_an_exception():
    classifier = mini_classifier(activation=Clamp)
    modules = [(name, id(module)) for name, module in classifier.named_modules()]
    with pytest.raises(RuntimeError):
        consistency_loss(classifier, torch.zeros(2, 5, 96, 96).double(), rectifiers="modules")
    assert [(name, id(module)) for name, module in classifier.named_modules()] == modules


def test_both_ways_to_find_relus_agree():
    classifier, images = mini_classifier(), photos(2)
    by_call, _ = consistency_loss(classifier, images, **STD)
    by_module, _ = consistency_loss(classifier, images, rectifiers="modules", **STD)
    assert num(by_call) == num(by_module)


@pytest.mark.slow
def test_every_relu_of_resnet50_is_met():
    from torchvision.models import resnet50

    mode = ReluMode()
    with mode, torch.no_grad():
        resnet50(weights=None).eval()(torch.zeros(1, 3, 64, 64))
    assert mode.calls == 49


class Clips(nn.Module):
    """Three 3-D convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(8), nn.ReLU(inplace=True)
        )
        self.body = nn.Sequential(nn.Conv3d(8, 12, 3, (2, 2, 2), 1), nn.ReLU(), nn.Conv3d(12, 12, 3, 1, 1))
        self.last, self.fc = nn.ReLU(), nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(self.last(self.body(self.stem(x))).mean((2, 3, 4)))


def clips(n=2, size=(4, 24, 32)):
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, *size, generator=random, dtype=torch.float64)


def video_classifier(network, layer):
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    names = [f"class {k}" for k in range(network.fc.out_features)]
    return Classifier(
        network.double(), arch="video", classes=names, target_layer=layer, layout="NCTHW"
    ).eval()


@pytest.mark.parametrize("scale", ["raw", "std"])
def test_videos_equal_the_loop_over_clips(scale):
    torch.manual_seed(0)
    classifier = video_classifier(Clips(), "body")
    with torch.no_grad():
        classifier.network.fc.weight.mul_(50)
    slope = 40.0 if scale == "raw" else 4.0
    loss, found = consistency_loss(classifier, clips(), mask_scale=scale, mask_slope=slope)
    assert found["maps"].shape == (2, 2, 6, 8)
    assert found["mask"].shape == (2, 4, 24, 32)
    assert_same(classifier, loss, slow.video_loss(classifier, clips(), slope, scale))


@pytest.mark.parametrize("options", [{"similarity": "ssim"}, {"mask_fill": "blur"}, {"direction": "reverse"}])
def test_options_work_for_videos(options):
    torch.manual_seed(0)
    classifier = video_classifier(Clips(), "body")
    loss, _ = consistency_loss(classifier, clips(), **STD, **options)
    assert loss.isfinite()
    assert flat(gradients(loss, classifier), classifier).isfinite().all()
    alone = [num(consistency_loss(classifier, clip[None], **STD, **options)[0]) for clip in clips()]
    assert num(loss) == pytest.approx(sum(alone) / 2, abs=1e-12)


def test_ssim_of_a_video_is_the_mean_over_its_frames():
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 4, 6, 6, generator=random, dtype=torch.float64)
    frames = torch.stack([ssim(a[:, t], b[:, t]) for t in range(4)]).mean(0)
    torch.testing.assert_close(SIMILARITIES["ssim"](a, b), frames)


@pytest.mark.slow
def test_r3d_18():
    """torchvision's video network, at a small size, against the loop; half the frames survive to layer2."""
    torch.manual_seed(0)
    classifier = video_classifier(r3d_18(weights=None, num_classes=3), "layer2")
    # statistics of batch norm that fit the weights
    classifier.network.train()
    with torch.no_grad():
        classifier.network(clips(2, (4, 32, 32)))
    classifier.eval()
    images = clips(2, (4, 32, 32))
    loss, found = consistency_loss(classifier, images, **STD)
    assert found["maps"].shape == (2, 2, 8, 8)
    assert int(found["relu_calls"]) == 17
    assert_same(classifier, loss, slow.video_loss(classifier, images, 4.0, "std"), 1e-9)


def evident(dtype=torch.float64):
    """A classifier whose maps have evidence for every class."""
    classifier = mini_classifier(dtype)
    with torch.no_grad():
        classifier.network.fc.weight.add_(3)
    return classifier


@pytest.mark.parametrize("form", ["ratio", "dice"])
@pytest.mark.parametrize("separation", [False, True])
def test_layer_attention_equals_the_loop(form, separation):
    classifier, images = evident(), photos(4)
    shown = [[2], [1, 3], [], [0, 1, 2, 3, 4]]
    labels = torch.zeros(4, 5)
    for row, present in enumerate(shown):
        labels[row, present] = 1
    options = {"form": form, "separation": separation}
    loss, found = layer_attention_loss(classifier, images, labels, **options)
    twin = slow.layer_attention(classifier, images, shown, "layer2", "layer2.0", form, separation)
    assert_same(classifier, loss, twin)
    assert found["classes"].tolist() == [2, 1, 0, 0]
    assert found["known"].tolist() == [True, True, False, True]
    assert found["separation"].count_nonzero() == (2 if separation else 0)
    # other layers, of other sizes than the last
    paths = {"layer": "layer2.1.conv3", "inner": "layer2.0.conv3"}
    loss, _ = layer_attention_loss(classifier, images, labels, **options, **paths)
    assert_same(
        classifier, loss, slow.layer_attention(classifier, images, shown, *paths.values(), *options.values())
    )


def test_layer_attention_options():
    classifier, images = mini_classifier(), photos(2)
    labels = torch.tensor([1, 2])
    assert inner_layer(classifier.network, "layer2") == "layer2.0"
    assert inner_layer(classifier.network, "layer2.1") == "layer2.0"
    assert inner_layer(classifier.network, "layer2.1.bn3") == "layer2.1.conv3"
    with pytest.raises(ModelError, match="a layer before it"):
        inner_layer(classifier.network, "conv1")
    larger, _ = layer_attention_loss(classifier, images, labels, inner="layer1")
    assert flat(gradients(larger, classifier), classifier).isfinite().all()
    with pytest.raises(ConfigError, match="ratio or dice"):
        layer_attention_loss(classifier, images, labels, form="iou")
    with pytest.raises(ConfigError, match="shape"):
        layer_attention_loss(classifier, images, torch.zeros(2, 9))
    classifier.network.bn1.train()
    with pytest.raises(ModelError, match="frozen"):
        layer_attention_loss(classifier, images, labels)


def test_an_image_without_evidence_gives_nothing():
    classifier = mini_classifier()
    with torch.no_grad():
        classifier.network.fc.weight.abs_().neg_()
    loss, found = layer_attention_loss(classifier, photos(2), torch.tensor([0, 1]), separation=True)
    assert num(loss) == 0
    assert not found["known"].any()
    assert (flat(gradients(loss, classifier), classifier) == 0).all()


def test_layer_attention_moves_the_inner_layer_into_the_last():
    classifier, images = evident(torch.float32), photos(6, dtype=torch.float32)
    labels = classifier(images).argmax(1)
    optimiser = torch.optim.Adam(classifier.parameters(), 1e-4)
    history = []
    for _ in range(12):
        loss, _ = layer_attention_loss(classifier, images, labels)
        history.append(num(loss))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert history[-1] < history[0] - 0.05, history


@pytest.mark.parametrize("options", [{"target": "random"}, {"control": "random_mask", **STD}], ids=str)
def test_what_is_drawn_does_not_depend_on_the_batch(options):
    class Part:
        def __init__(self, rows):
            self.rows, self.images, self.targets = rows, photos(6)[list(rows)], torch.ones(len(rows), 5)

        def __len__(self):
            return len(self.rows)

    classifier = mini_classifier()
    objective = OBJECTIVES["atcon"](**options)
    before = torch.get_rng_state()
    whole = num(objective(classifier, Part((0, 3, 5)), 7)["atcon"])
    parts = [num(objective(classifier, Part((row,)), 7)["atcon"]) for row in (5, 0, 3)]
    assert whole == pytest.approx(sum(parts) / 3, abs=1e-12)
    assert torch.equal(torch.get_rng_state(), before)
    assert whole != num(objective(classifier, Part((0, 3, 5)), 8)["atcon"])


def test_wrong_options_are_named():
    classifier, images = mini_classifier(), photos(1)
    for name, value in (("direction", "up"), ("attribution", "lime"), ("rectifiers", "x"), ("samples", 0)):
        with pytest.raises(ConfigError, match=name):
            consistency_loss(classifier, images, **{name: value})
