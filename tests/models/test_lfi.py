"""LFI-CAM's head: its equations by hand, its special cases, its edges."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from wsod.models import build_classifier
from wsod.models.heads.base import minmax
from wsod.models.heads.lfi import Importance, LFINetwork, LFIOutput, importance_network

SIZES = {"resnet18": (512, 4), "vgg11": (512, 4), "densenet121": (1024, 4), "mobilenet_v2": (1280, 4)}


def network(channels: int = 6, seed: int = 0, **options) -> LFINetwork:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU())
    fin = importance_network(channels, None, "each")
    found = LFINetwork(trunk, Importance(fin), nn.Sequential(), nn.Linear(channels, 3), **options)
    return found.double().eval()


def images(n: int = 3, side: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_ranges(seen: LFIOutput, channels: int, grid: int) -> None:
    n = len(seen.logits)
    assert seen.logits.shape == (n, 3)
    assert seen.map.shape == (n, grid, grid)
    assert seen.weights.shape == (n, channels)
    assert torch.equal(seen.map.amax((1, 2)), torch.ones(n))
    assert torch.equal(seen.map.amin((1, 2)), torch.zeros(n))
    assert (seen.weights > 0).all()
    torch.testing.assert_close(seen.weights.sum(1), torch.ones(n), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("arch", "shape"), SIZES.items())
@pytest.mark.slow
def test_shapes_and_ranges(arch, shape):
    torch.manual_seed(0)
    # batch statistics: with those of a new network, features shrink from layer to layer
    classifier = build_classifier(arch, list("abc"), head="lfi", size=64).train()
    with torch.no_grad():
        seen = classifier.network.look(torch.randn(2, 3, 64, 64))
    channels, grid = shape
    check_ranges(seen, channels, grid)
    bottleneck = any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in classifier.network.attention.modules()
    )
    assert bottleneck == (channels > 1024)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "shape"), SIZES.items())
def test_the_papers_grid_at_224(arch, shape):
    torch.manual_seed(0)
    classifier = build_classifier(arch, list("abc"), head="lfi", size=224).train()
    with torch.no_grad():
        check_ranges(classifier.network.look(torch.randn(2, 3, 224, 224)), shape[0], 14)


@pytest.mark.parametrize(
    ("options", "grid"),
    [({"stride": 0}, 2), ({"stride": 8}, 8), ({"halving": "first"}, 4), ({"layer": "layer3"}, 4)],
)
def test_grid_options(options, grid):
    classifier = build_classifier("resnet18", list("abc"), head="lfi", head_options=options, size=64).eval()
    with torch.no_grad():
        seen = classifier.network.look(torch.randn(2, 3, 64, 64))
    assert seen.map.shape == (2, grid, grid)
    if options.get("halving") == "first":
        assert classifier.network.trunk.conv1.stride == (1, 1)
    if "layer" in options:
        # what follows the layer runs after the attention
        assert seen.weights.shape[1] == 256
        assert classifier.network.fc.in_features == 512


def test_attending_before_the_last_norm_of_densenet():
    options = {"layer": "features.denseblock4", "stride": 0}
    classifier = build_classifier(
        "densenet121", list("abc"), head="lfi", head_options=options, size=64
    ).eval()
    assert [name for name, _ in classifier.network.features.features.named_children()] == ["norm5", "relu"]
    with torch.no_grad():
        assert classifier.network.look(torch.randn(1, 3, 64, 64)).map.min() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_is_that_of_a_loop_over_channels(dtype):
    found = network().to(dtype)
    x = images().to(dtype)
    features = found.trunk(x)
    weights = found.attention.weights(features, x)
    total = sum(weights[:, k, None, None] * features[:, k] for k in range(6)).relu()
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        found.attention(features, weights), (total - low) / (high - low), rtol=0, atol=atol
    )


def test_an_image_alone_and_in_a_batch():
    found, x = network(), images()
    whole = found.look(x)
    for row in range(3):
        alone = found.look(x[row : row + 1])
        torch.testing.assert_close(alone.map[0], whole.map[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.logits[0], whole.logits[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [-1e3, 0.0])
def test_dead_and_constant_features_have_finite_gradients(bias):
    found = network()
    with torch.no_grad():
        found.trunk[0].weight.zero_()
        found.trunk[0].bias.fill_(bias)
        found.trunk[0].bias[:2] = torch.tensor([bias, 2.0])  # channel 1 is a constant that is not 0
    seen = found.train().look(images())
    assert torch.isfinite(seen.map).all()
    (seen.logits.sum() + seen.map.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in found.parameters() if p.grad is not None)


def test_a_uniform_importance_network_gives_the_mean_map():
    found, x = network(), images()
    last = [m for m in found.attention.fin if isinstance(m, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    seen = found.look(x)
    assert torch.equal(seen.weights, torch.full_like(seen.weights, 1 / 6))
    torch.testing.assert_close(seen.map, minmax(seen.features.mean(1)))
    torch.testing.assert_close(seen.correlation(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(seen.entropy(), torch.ones(3, dtype=torch.float64))


class OneHot(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e4 * nn.functional.one_hot(torch.tensor(2), 6).to(x)[:, None, None].expand_as(x)


def test_a_one_hot_importance_network_gives_that_channel():
    found = network()
    found.attention.fin = OneHot()
    seen = found.look(images())
    torch.testing.assert_close(seen.map, minmax(seen.features[:, 2]))
    assert seen.entropy().max() < 1e-6


def test_scaled_features_leave_weights_and_map_and_scale_what_is_attended():
    found, x = network(), images()
    pooled = []
    found.features.register_forward_hook(lambda module, given, output: pooled.append(output))
    a = found.look(x)
    torch.testing.assert_close(minmax(7 * a.features), minmax(a.features))
    found.trunk.register_forward_hook(lambda module, given, output: 7 * output)
    b = found.look(x)
    torch.testing.assert_close(b.weights, a.weights)
    torch.testing.assert_close(b.map, a.map)
    torch.testing.assert_close(pooled[1], 7 * pooled[0])


def test_without_attention_it_is_the_plain_network():
    found, x = network(), images()
    found.attention.forward = lambda features, weights: torch.zeros_like(features[:, 0])
    torch.testing.assert_close(found(x), found.fc(found.trunk(x).mean((2, 3))))


@pytest.mark.parametrize("detached", [False, True])
def test_gradient_reaches_every_part(detached):
    found = network(detach_map=detached)
    found.train()(images()).square().sum().backward()
    for part, expected in ((found.trunk, True), (found.fc, True), (found.attention.fin, not detached)):
        arrived = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in part.parameters()]
        assert all(arrived) if expected else not any(arrived)


def test_a_blank_image_weighs_all_channels_alike():
    found = network()
    for module in found.attention.fin:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        seen = found.look(torch.zeros(1, 3, 12, 12, dtype=torch.float64))
    torch.testing.assert_close(seen.weights, torch.full_like(seen.weights, 1 / 6))
    assert torch.isfinite(seen.logits).all()


def test_by_hand():
    features = torch.zeros(1, 2, 2, 2)
    features[0, 0] = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    features[0, 1] = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]] * 3])
    attention = Importance(nn.Identity())
    # scaled [[0, .5], [1, 0]] and [[0, 0], [0, 1]], times grey: means (1 + 3) / 4 = 1 and 4 / 4 = 1
    weights = attention.weights(features, x)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5]]))
    # sum [[.5, 1.5], [2.5, 1.5]]
    torch.testing.assert_close(attention(features, weights), torch.tensor([[[0.0, 0.5], [1.0, 0.5]]]))


def test_four_channels_against_a_twin_of_loops():
    found = network(4)
    x = images(2, side=8)
    with torch.no_grad():
        for module in found.attention.fin:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
        seen = found.look(x)
    for features, image, weights, values in zip(seen.features, x, seen.weights, seen.map, strict=True):
        w, a = _twin(features.numpy(), image.numpy(), found.attention.fin)
        np.testing.assert_allclose(weights.numpy(), w, rtol=1e-9)
        np.testing.assert_allclose(values.numpy(), a, atol=1e-9)


def _twin(features: np.ndarray, image: np.ndarray, fin: nn.Sequential) -> tuple[np.ndarray, np.ndarray]:
    """w and A of one image, features (4, 4, 4) and image (3, 8, 8), position by position."""
    grey = image.mean(0).reshape(4, 2, 4, 2).mean((1, 3))  # half the side: bilinear is the mean of four
    x = np.zeros_like(features)
    for k in range(4):
        low, high = features[k].min(), features[k].max()
        x[k] = (features[k] - low) / max(high - low, 1e-8) * grey
    for layer in fin:
        if isinstance(layer, nn.Conv2d):
            kernel, padded, y = layer.weight.detach().numpy(), np.pad(x, ((0, 0), (1, 1), (1, 1))), x * 0
            for k, i, j in np.ndindex(4, 4, 4):
                y[k, i, j] = (kernel[k] * padded[:, i : i + 3, j : j + 3]).sum()
            x = y
        elif isinstance(layer, nn.BatchNorm2d):
            mean, var, gain, bias = (
                p.detach().numpy()[:, None, None]
                for p in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
            )
            x = (x - mean) / np.sqrt(var + layer.eps) * gain + bias
        else:
            x = np.maximum(x, 0)
    scores = np.array([x[k].mean() for k in range(4)])
    w = np.exp(scores) / np.exp(scores).sum()
    total = np.maximum(sum(w[k] * features[k] for k in range(4)), 0)
    return w, (total - total.min()) / (total.max() - total.min())


def test_grey_pixels_undo_the_normalisation():
    options = {"gray": "pixel"}
    classifier = build_classifier("smallnet", list("ab"), head="lfi", head_options=options, size=32)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (classifier.preprocess.mean, classifier.preprocess.std)
    )
    gray = classifier.network.attention.gray((pixels - mean) / std)
    torch.testing.assert_close(gray, pixels.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("relu", "count"), [("each", 4), ("pairs", 2)])
def test_both_placements_of_relu(relu, count):
    fin = importance_network(512, None, relu)
    assert sum(isinstance(m, nn.ReLU) for m in fin) == count
    assert sum(p.numel() for p in fin.parameters()) == 4 * (9 * 512**2 + 2 * 512)


def test_both_read_outs_of_a_class_are_reachable():
    from wsod.maps import attention_maps

    torch.manual_seed(0)
    classifier = build_classifier("smallnet", list("abc"), head="lfi", size=48).eval()
    x = torch.randn(2, 3, 48, 48)
    found = attention_maps(classifier, x, [[0, 1], [2]], ["attention", "cam", "attention:times=cam"]).maps
    expected = found["attention"] * minmax(found["cam"].relu())
    torch.testing.assert_close(found["attention:times=cam"], expected)
    with torch.no_grad():
        seen = classifier.network.look(x)
        attended = (1 + seen.map[:, None]) * seen.features
        cells = torch.einsum("d,dhw->hw", classifier.network.fc.weight[1], attended[0])
    torch.testing.assert_close(found["cam"][1], cells, rtol=1e-4, atol=1e-5)


def test_the_trained_classifier_is_kept_where_it_fits(tmp_path):
    start = build_classifier("smallnet", list("abc"), size=32)
    torch.save(start.network.state_dict(), tmp_path / "start.pt")
    kept = build_classifier("smallnet", list("abc"), head="lfi", weights=tmp_path / "start.pt", size=32)
    assert torch.equal(kept.network.fc.weight, start.network.fc.weight)
    assert torch.equal(
        kept.network.trunk.blocks[3].second[0].weight, start.network.blocks[3].second[0].weight
    )
    assert "the head lfi is new" in kept.loaded
    trunk = {id(p) for p in kept.network.trunk.parameters()}
    assert not trunk & {id(p) for p in kept.head_parameters()}
    assert len(trunk) + len(kept.head_parameters()) == len(list(kept.parameters()))


def test_output_in_half_precision_is_close():
    found = network().float()
    x = images().float()
    half = copy.deepcopy(found).bfloat16()
    seen = half.look(x.bfloat16())
    assert isinstance(seen, LFIOutput)
    assert seen.map.dtype == torch.float32
    torch.testing.assert_close(seen.map, found.look(x).map, rtol=0, atol=0.1)


@pytest.mark.slow
def test_it_learns_a_shape_on_noise_and_its_map_finds_it(record_property):
    generator = torch.Generator().manual_seed(0)
    x, y = 0.5 * torch.randn(64, 3, 64, 64, generator=generator), torch.arange(64) % 2
    inside = torch.zeros(64, 64, 64, dtype=torch.bool)
    for row in range(64):
        top, left = torch.randint(0, 40, (2,), generator=generator).tolist()
        inside[row, top : top + 24, left : left + 24] = True
        x[row, int(y[row]), top : top + 24, left : left + 24] += 2
    torch.manual_seed(0)
    network = build_classifier("resnet18", ["red", "green"], head="lfi", size=64).network
    optimiser = torch.optim.Adam(network.parameters(), 3e-4)
    for _ in range(8):
        for part in torch.randperm(64, generator=generator).split(16):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network.train()(x[part]), y[part]).backward()
            optimiser.step()
    with torch.no_grad():
        seen = network.look(x)
    assert (seen.logits.argmax(1) == y).float().mean() >= 0.95
    fine = nn.functional.interpolate(seen.map[:, None], (64, 64), mode="bilinear")[:, 0]
    energy = (fine * inside).sum((1, 2)) / fine.sum((1, 2))
    assert float(energy.mean()) > float(inside.float().mean())
    # whether the importance network has learned anything beyond the plain mean map: reported, not judged
    means = seen.features.mean(1).flatten(1).numpy()
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(seen.map.flatten(1).numpy(), means, strict=True)]
    np.testing.assert_allclose(seen.correlation().numpy(), expected, atol=1e-4)
    record_property("correlation with the mean map", float(np.mean(expected)))
    print(f"correlation with the mean map {np.mean(expected):.3f}, entropy {seen.entropy().mean():.3f}")
