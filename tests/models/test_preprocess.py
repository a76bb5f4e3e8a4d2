from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from wsod.errors import ConfigError
from wsod.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


NORMALISE = [T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (201, 77)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_torchvision(size, interpolation):
    image = picture(*size)
    mode = T.InterpolationMode(interpolation)
    peers = {
        "squash": T.Compose([T.Resize((56, 56), mode), *NORMALISE]),
        "shorter": T.Compose([T.Resize(56, mode), *NORMALISE]),
        "crop": T.Compose([T.Resize(64, mode), T.CenterCrop(56), *NORMALISE]),
    }
    for name, peer in peers.items():
        found, _ = Preprocess(56, mode=name, interpolation=interpolation)(image)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, peer(image), rtol=1e-5, atol=1e-6)


def marked(width: int, height: int, x: int, y: int) -> Image.Image:
    values = np.zeros((height, width, 3), np.uint8)
    values[y - 6 : y + 6, x - 6 : x + 6] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("mode", ["squash", "shorter", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(300, 200), (180, 320), (224, 224)])
def test_region_says_where_the_tensor_lies_in_the_image(mode, size):
    """A bright square is found again at its place, from the tensor and the region alone."""
    width, height = size
    for x, y in ((width // 2, height // 2), (width // 2 + 37, height // 2 - 41)):
        tensor, region = Preprocess(112, mode=mode)(marked(width, height, x, y))
        x0, y0, x1, y1 = region or (0, 0, width, height)
        bright = tensor[0] - tensor[0, 56, 0] if mode != "letterbox" else tensor[0].clamp(min=0)
        bright = bright.clamp(min=0).double()
        rows = torch.arange(tensor.shape[1]) + 0.5
        columns = torch.arange(tensor.shape[2]) + 0.5
        column = (bright.sum(0) * columns).sum() / bright.sum()
        row = (bright.sum(1) * rows).sum() / bright.sum()
        assert x0 + float(column) / tensor.shape[2] * (x1 - x0) == pytest.approx(x, abs=0.5)
        assert y0 + float(row) / tensor.shape[1] * (y1 - y0) == pytest.approx(y, abs=0.5)
    if mode in ("squash", "shorter"):
        assert region is None


def test_letterbox_fills_with_the_mean_colour():
    tensor, region = Preprocess(100, mode="letterbox")(picture(200, 100))
    assert region == (0, -50, 200, 150)
    assert tensor[:, :25].abs().max() < 1e-6
    assert tensor[:, 75:].abs().max() < 1e-6
    assert tensor[:, 25:75].abs().max() > 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_colour_modes(mode):
    image = picture(40, 30, mode)
    assert torch.equal(Preprocess(16)(image)[0], Preprocess(16)(image.convert("RGB"))[0])


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"mode": "stretch"},
        {"interpolation": "cubic"},
        {"std": (1.0, 0.0, 1.0)},
        {"size": 100, "resize": 50},
        {"mean": (0.5,)},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ConfigError, match="preprocess"):
        Preprocess(**options)
