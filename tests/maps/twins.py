"""Every map method again, slowly: one image, one class, plain loops over channels, cells and colours."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.maps.twins_attention import ATTENTION_TWINS
from wsod.models import Classifier

Array = NDArray[np.float64]


def grid(classifier: Classifier, output: Tensor) -> Tensor:
    """(D, h, w) from one image's output of the target layer."""
    if classifier.layout == "NHWC":
        return torch.stack([output[0, :, :, d] for d in range(output.shape[3])])
    if classifier.layout == "tokens":
        side = round((output.shape[1] - 1) ** 0.5)
        return torch.stack([output[0, 1:, d].reshape(side, side) for d in range(output.shape[2])])
    return output[0]


def run(classifier: Classifier, image: Tensor) -> tuple[Tensor, Tensor]:
    """The target layer's output (before anything can overwrite it) and the logits, with a full graph."""
    kept: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    hook = classifier.network.get_submodule(classifier.target_layer).register_forward_hook(keep)
    logits = classifier.network(image[None])[0]
    hook.remove()
    return kept[0], logits


def parts(classifier: Classifier, image: Tensor, label: int) -> tuple[Array, Array, float]:
    """A (D, h, w), g (D, h, w) and the score."""
    output, logits = run(classifier, image.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(logits[label], output)
    a, g = grid(classifier, output.detach()), grid(classifier, gradient)
    return a.numpy(), g.numpy(), float(logits[label].detach())


def cam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, _, _ = parts(classifier, image, label)
    head = [module for module in classifier.network.modules() if isinstance(module, torch.nn.Linear)][-1]
    out = np.zeros(a.shape[1:])
    for d in range(len(a)):
        out += float(head.weight[label, d].detach()) * a[d]
    return out


def gradcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, g, _ = parts(classifier, image, label)
    out = np.zeros(a.shape[1:])
    for d in range(len(a)):
        out += g[d].sum() / g[d].size * a[d]
    return np.maximum(out, 0)


def gradcam_plus_plus(classifier: Classifier, image: Tensor, label: int) -> Array:
    """The paper's own form, α = g²/(2g² + ΣA·g³) with the zero gradients left out (ReLU features only)."""
    a, g, _ = parts(classifier, image, label)
    out = np.zeros(a.shape[1:])
    for d in range(len(a)):
        weight = 0.0
        for value in g[d].ravel():
            if value != 0:
                alpha = value**2 / (2 * value**2 + a[d].clip(min=0).sum() * max(value, 0.0) ** 3)
                weight += alpha * max(value, 0.0)
        out += weight * a[d]
    return np.maximum(out, 0)


def xgradcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, g, _ = parts(classifier, image, label)
    out = np.zeros(a.shape[1:])
    for d in range(len(a)):
        if a[d].sum() != 0:
            out += (g[d] * a[d]).sum() / a[d].sum() * a[d]
    return np.maximum(out, 0)


def hirescam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, g, _ = parts(classifier, image, label)
    return np.maximum(sum(g[d] * a[d] for d in range(len(a))), 0)


def elementgradcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, g, _ = parts(classifier, image, label)
    return sum(np.maximum(g[d] * a[d], 0) for d in range(len(a)))


def layercam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, g, _ = parts(classifier, image, label)
    return np.maximum(sum(np.maximum(g[d], 0) * a[d] for d in range(len(a))), 0)


def eigencam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, _, _ = parts(classifier, image, label)
    cells = a.reshape(len(a), -1).T
    lengths = np.sqrt((cells**2).sum(1))
    centred = cells - cells.mean(0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    out = centred @ right[0]
    if ((lengths - lengths.mean()) * out).sum() < 0:
        out = -out
    return out.reshape(a.shape[1:])


def eigengradcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    a, g, _ = parts(classifier, image, label)
    cells = (g * a).reshape(len(a), -1).T
    given = cells.sum(1)
    centred = cells - cells.mean(0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    out = centred @ right[0]
    if ((given - given.mean()) * out).sum() < 0:
        out = -out
    return out.reshape(a.shape[1:])


def finercam(classifier: Classifier, image: Tensor, label: int) -> Array:
    _, logits = run(classifier, image)
    others = [k for k in range(len(logits)) if k != label]
    similar = sorted(others, key=lambda k: abs(float(logits[k].detach() - logits[label].detach())))[:3]
    a, own, _ = parts(classifier, image, label)
    g = own - 0.6 / 3 * sum(parts(classifier, image, k)[1] for k in similar)
    out = sum(g[d].mean() * a[d] for d in range(len(a)))
    return np.maximum(out, 0)


def shapleycam(classifier: Classifier, image: Tensor, label: int) -> Array:
    """The whole Hessian, written out, of the score as a function of the features on the grid."""
    output, _ = run(classifier, image)
    a = grid(classifier, output.detach())

    def score(features: Tensor) -> Tensor:
        def put(module: object, inputs: object, output: Tensor) -> Tensor:
            if classifier.layout == "NHWC":
                return features.permute(1, 2, 0)[None]
            if classifier.layout == "tokens":
                return torch.cat([output[:, :1].detach(), features.flatten(1).T[None]], 1)
            return features[None].clone()

        hook = classifier.network.get_submodule(classifier.target_layer).register_forward_hook(put)
        logits = classifier.network(image[None])[0]
        hook.remove()
        return logits[label] + torch.log(torch.exp(logits[label]) / torch.exp(logits).sum())

    with sdpa_kernel(SDPBackend.MATH):
        g = torch.autograd.functional.jacobian(score, a)
        hessian = torch.autograd.functional.hessian(score, a)
    out = np.zeros(a.shape[1:])
    for d in range(len(a)):
        out += float((g[d] - (hessian[d] * a).sum((2, 3, 4)) / 2).mean()) * a[d].numpy()
    return np.maximum(out, 0)


@lru_cache
def hats(cells: int, length: int) -> Array:
    """(length, cells): what cells give to pixels along one axis, half-pixel centres, edges repeated."""
    weights = np.zeros((length, cells))
    for i in range(length):
        y = min(max((i + 0.5) * cells / length - 0.5, 0), cells - 1)
        weights[i, int(y)] += 1 - y + int(y)
        weights[i, min(int(y) + 1, cells - 1)] += y - int(y)
    return weights


def enlarged(values: Array, size: tuple[int, int]) -> Array:
    """Bilinear: along one axis, then along the other."""
    return hats(values.shape[0], size[0]) @ values @ hats(values.shape[1], size[1]).T


def ablationcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    """The whole network again for each channel, its output at the target layer edited on the way."""
    a, _, score = parts(classifier, image, label)
    out = np.zeros(a.shape[1:])
    for d in range(len(a)):

        def cut(module: object, inputs: object, output: Tensor, d: int = d) -> Tensor:
            output = output.clone()
            if classifier.layout == "NCHW":
                output[:, d] = 0
            elif classifier.layout == "NHWC":
                output[..., d] = 0
            else:
                output[:, 1:, d] = 0
            return output

        hook = classifier.network.get_submodule(classifier.target_layer).register_forward_hook(cut)
        with torch.no_grad():
            without = float(classifier.network(image[None])[0, label])
        hook.remove()
        out += (score - without) / score * a[d]
    return np.maximum(out, 0)


def input_gradient(classifier: Classifier, image: Tensor, label: int) -> Array:
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.network(x[None])[0, label], x)
    return gradient.numpy()


def gradient(classifier: Classifier, image: Tensor, label: int) -> Array:
    g = input_gradient(classifier, image, label)
    return np.max([abs(g[0]), abs(g[1]), abs(g[2])], axis=0)


def inputxgradient(classifier: Classifier, image: Tensor, label: int) -> Array:
    product = image.numpy() * input_gradient(classifier, image, label)
    return product[0] + product[1] + product[2]


def smoothgrad(classifier: Classifier, image: Tensor, label: int) -> Array:
    generator = torch.Generator().manual_seed(0)
    spread = 0.15 * (image.max() - image.min())
    total = np.zeros(image.shape)
    for _ in range(25):
        noise = torch.randn(image.shape, generator=generator).double()
        total += input_gradient(classifier, image + spread * noise, label)
    return np.abs(total / 25).max(0)


def integratedgradients(classifier: Classifier, image: Tensor, label: int) -> Array:
    nodes, weights = np.polynomial.legendre.leggauss(32)
    total = np.zeros(image.shape)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight / 2 * input_gradient(classifier, image * (node / 2 + 0.5), label)
    return np.abs(image.numpy() * total).sum(0)


def full_gradient(classifier: Classifier, image: Tensor, label: int) -> tuple[Array, list[Array], float]:
    """The input's part (3, H, W), the parts (D, h, w) of each layer with a bias, the sum of the linear ones'.

    A bias is what the layer gives for zeros; its gradient is that of a tensor added to the layer's output.
    """
    added: list[tuple[Tensor, Tensor]] = []

    def add(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        extra = torch.zeros_like(output, requires_grad=True)
        added.append((module.forward(torch.zeros_like(inputs[0])).detach(), extra))
        return output + extra

    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    layers = [m for m in classifier.network.modules() if isinstance(m, kinds)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    x = image.clone().requires_grad_()
    score = classifier.network(x[None])[0, label]
    for hook in hooks:
        hook.remove()
    g, *biases = torch.autograd.grad(score, [x, *(extra for _, extra in added)])
    terms = [(bias * b)[0].numpy() for (bias, _), b in zip(added, biases, strict=True)]
    linear = sum(float(term.sum()) for term in terms if term.ndim == 1)
    return (x.detach() * g).numpy(), [term for term in terms if term.ndim == 3], linear


def fullgrad(classifier: Classifier, image: Tensor, label: int) -> Array:
    own, terms, _ = full_gradient(classifier, image, label)
    out = np.zeros(image.shape[1:])
    for term in [own, *terms]:
        for channel in np.abs(term):
            if channel.max() - channel.min() > 1e-6 * channel.max():
                out += enlarged((channel - channel.min()) / (channel.max() - channel.min()), out.shape)
    return out


def center(classifier: Classifier, image: Tensor, label: int) -> Array:
    height, width = image.shape[1:]
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            down, right = (y - height / 2) / (height / 4), (x - width / 2) / (width / 4)
            out[y, x] = np.exp(-(down**2 + right**2) / 2)
    return (out - out.min()) / (out.max() - out.min())


def uniform(classifier: Classifier, image: Tensor, label: int) -> Array:
    return np.full(image.shape[1:], 1.0)


def random(classifier: Classifier, image: Tensor, label: int) -> Array:
    """Seeded by the pixels, row by row and colour by colour within a pixel."""
    pixels = [
        float(image[c, y, x]) for y in range(image.shape[1]) for x in range(image.shape[2]) for c in range(3)
    ]
    name = hashlib.sha256(struct.pack(f"<{len(pixels)}d", *pixels)).hexdigest()
    seed = hashlib.sha256(b"0 " + name.encode()).digest()
    return np.random.default_rng(list(seed)).random(14 * 14).reshape(14, 14)


def sobel(classifier: Classifier, image: Tensor, label: int) -> Array:
    red, green, blue = (
        image[c].numpy() * classifier.preprocess.std[c] + classifier.preprocess.mean[c] for c in range(3)
    )
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    height, width = grey.shape
    kernel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    out = np.zeros(grey.shape)
    for y in range(height):
        for x in range(width):
            along = down = 0.0
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    value = grey[min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)]
                    along += kernel[i + 1][j + 1] * value
                    down += kernel[j + 1][i + 1] * value
            out[y, x] = (along**2 + down**2) ** 0.5
    return out


TWINS = {
    **ATTENTION_TWINS,
    "ablationcam": ablationcam,
    "cam": cam,
    "center": center,
    "eigencam": eigencam,
    "eigengradcam": eigengradcam,
    "elementgradcam": elementgradcam,
    "finercam": finercam,
    "fullgrad": fullgrad,
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "gradient": gradient,
    "hirescam": hirescam,
    "inputxgradient": inputxgradient,
    "integratedgradients": integratedgradients,
    "layercam": layercam,
    "shapleycam": shapleycam,
    "random": random,
    "smoothgrad": smoothgrad,
    "sobel": sobel,
    "uniform": uniform,
    "xgradcam": xgradcam,
}
