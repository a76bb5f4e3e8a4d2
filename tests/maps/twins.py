"""Every map method again, slowly: one image, one class, plain loops over channels, cells and colours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.maps.networks import ReluNet
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
    head = classifier.network.fc if hasattr(classifier.network, "fc") else classifier.network.head
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


def through_relus(classifier: Classifier, image: Tensor, label: int, rule: str) -> Array:
    """The gradient of a `ReluNet` written out layer by layer: no function mode, no autograd function."""
    network = classifier.network
    assert isinstance(network, ReluNet)
    layers, inputs, before = [network.first, network.second, network.third], [], []
    x = image[None]
    with torch.no_grad():
        for layer in layers:
            inputs.append(x)
            before.append(layer(x))
            x = before[-1].clamp(min=0)
        grad = network.fc.weight[label][None, :, None, None] / x[0, 0].numel() * torch.ones_like(x)
    for layer, came, z in reversed(list(zip(layers, inputs, before, strict=True))):
        gate = (z > 0).double() if rule != "deconvnet" else torch.ones_like(z)
        if rule != "plain":
            gate = gate * (grad > 0)
        leaf = came.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(layer(leaf), leaf, gate * grad)  # a convolution's transpose
    return grad[0].numpy()


def guidedbackprop(classifier: Classifier, image: Tensor, label: int) -> Array:
    return np.abs(through_relus(classifier, image, label, "guided")).max(0)


def deconvnet(classifier: Classifier, image: Tensor, label: int) -> Array:
    return np.abs(through_relus(classifier, image, label, "deconvnet")).max(0)


def guidedgradcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    coarse = gradcam(classifier, image, label)
    fine = np.zeros(image.shape[1:])
    (h, w), (height, width) = coarse.shape, fine.shape
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = coarse[top, left] * (1 - x + left) + coarse[top, right] * (x - left)
            lower = coarse[bottom, left] * (1 - x + left) + coarse[bottom, right] * (x - left)
            fine[i, j] = upper * (1 - y + top) + lower * (y - top)
    return np.abs(fine * through_relus(classifier, image, label, "guided")).max(0)


def center(classifier: Classifier, image: Tensor, label: int) -> Array:
    height, width = image.shape[1:]
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            down, right = (y - height / 2) / (height / 4), (x - width / 2) / (width / 4)
            out[y, x] = np.exp(-(down**2 + right**2) / 2)
    return (out - out.min()) / (out.max() - out.min())


TWINS = {
    "ablationcam": ablationcam,
    "cam": cam,
    "center": center,
    "deconvnet": deconvnet,
    "eigencam": eigencam,
    "elementgradcam": elementgradcam,
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "gradient": gradient,
    "guidedbackprop": guidedbackprop,
    "guidedgradcam": guidedgradcam,
    "hirescam": hirescam,
    "inputxgradient": inputxgradient,
    "integratedgradients": integratedgradients,
    "layercam": layercam,
    "smoothgrad": smoothgrad,
    "xgradcam": xgradcam,
}
