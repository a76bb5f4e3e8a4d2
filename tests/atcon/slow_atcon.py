"""ATCON as one would write it first: image by image, three forwards, ReLU modules exchanged."""

from __future__ import annotations

import torch
from torch import nn


class GuidedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, incoming):
        (z,) = ctx.saved_tensors
        return incoming * (z > 0) * (incoming > 0)


class GuidedReLU(nn.Module):
    def forward(self, z):
        return GuidedFunction.apply(z)


def swap(module, old, new):
    for name, child in list(module.named_children()):
        if isinstance(child, old):
            setattr(module, name, new())
        else:
            swap(child, old, new)


def grad_cam(classifier, x, label):
    kept = []
    layer = classifier.network.get_submodule(classifier.target_layer)
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = classifier(x)[0, label]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0], create_graph=True)
    cam = 0
    for k in range(gradient.shape[1]):
        cam = cam + gradient[0, k].mean() * kept[0][0, k]
    return cam


def guided(classifier, x, label, plain=False):
    x = x.clone().requires_grad_()
    if not plain:
        swap(classifier.network, nn.ReLU, GuidedReLU)
    try:
        (gradient,) = torch.autograd.grad(classifier(x)[0, label], x, create_graph=True)
    finally:
        swap(classifier.network, GuidedReLU, nn.ReLU)
    return gradient[0, 0].abs() + gradient[0, 1].abs() + gradient[0, 2].abs()


def squash(cam):
    return torch.sigmoid((cam - cam.mean()) / cam.std())


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def slow_loss(classifier, images, labels=None, *, scale="raw", slope=40.0, plain=False):
    """(loss, [r of each image])"""
    values = []
    for i in range(len(images)):
        x = images[i : i + 1].detach()
        label = int(classifier(x)[0].argmax()) if labels is None else int(labels[i])
        first = grad_cam(classifier, x, label)
        g = guided(classifier, x, label, plain)
        theta = g.mean() + g.std() / 2
        factor = slope / g.std() if scale == "std" else slope
        mask = 1 / (1 + torch.exp(-factor * (g - theta)))
        second = grad_cam(classifier, x * mask, label)
        values.append(pearson(squash(first), squash(second)))
    return -sum(values) / len(values), [value.item() for value in torch.stack(values).detach()]
