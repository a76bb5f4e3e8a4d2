"""Variants of ATCON and its baseline, image by image or clip by clip, without a thought for speed."""

from __future__ import annotations

import torch
from torch import nn

from tests.atcon.slow_atcon import grad_cam, guided, pearson, squash


def soft(saliency, slope, scale="raw"):
    theta = saliency.mean() + saliency.std() / 2
    factor = slope / saliency.std() if scale == "std" else slope
    return 1 / (1 + torch.exp(-factor * (saliency - theta)))


def gradient_at(classifier, x, label):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(x)[0, label], x, create_graph=True)
    return gradient


def integrated(classifier, x, label, points):
    total = 0
    for j in range(points):
        total = total + gradient_at(classifier, x * (j + 0.5) / points, label)
    return (x * total / points)[0].abs().sum(0)


def smooth(classifier, x, label, draws, noise):
    total = 0
    for draw in draws:
        total = total + gradient_at(classifier, x + noise * (x.max() - x.min()) * draw, label)
    return (total / len(draws))[0].abs().sum(0)


def masked_by(classifier, images, saliency_of, slope, scale="raw"):
    """ATCON whose mask is made of `saliency_of(x, label)`."""
    total = 0
    for i in range(len(images)):
        x = images[i : i + 1]
        label = int(classifier(x)[0].argmax())
        first = grad_cam(classifier, x, label)
        second = grad_cam(classifier, x * soft(saliency_of(x, label), slope, scale), label)
        total = total - pearson(squash(first), squash(second)) / len(images)
    return total


def reverse(classifier, images, slope, scale="raw"):
    """Guided backpropagation of x and of x masked by its attention map."""
    total = 0
    for i in range(len(images)):
        x = images[i : i + 1]
        label = int(classifier(x)[0].argmax())
        cam = grad_cam(classifier, x, label)
        large = nn.functional.interpolate(cam[None, None], x.shape[2:], mode="bilinear")[0, 0]
        first = guided(classifier, x, label)
        second = graph_guided(classifier, x * soft(large, slope, scale), label)
        total = total - pearson(squash(first), squash(second)) / len(images)
    return total


def graph_guided(classifier, x, label):
    """`guided` for an x that hangs on the weights itself."""
    from tests.atcon.slow_atcon import GuidedReLU, swap

    swap(classifier.network, nn.ReLU, GuidedReLU)
    try:
        (gradient,) = torch.autograd.grad(classifier(x)[0, label], x, create_graph=True)
    finally:
        swap(classifier.network, GuidedReLU, nn.ReLU)
    return gradient[0].abs().sum(0)


def video_cam(classifier, x, label):
    """(t, h, w): each frame of the target layer weighs its channels by itself."""
    kept = []
    layer = classifier.network.get_submodule(classifier.target_layer)
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = classifier(x)[0, label]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0], create_graph=True)
    frames = []
    for t in range(gradient.shape[2]):
        frame = 0
        for k in range(gradient.shape[1]):
            frame = frame + gradient[0, k, t].mean() * kept[0][0, k, t]
        frames.append(frame)
    return torch.stack(frames)


def video_loss(classifier, clips, slope, scale="raw"):
    total = 0
    for i in range(len(clips)):
        x = clips[i : i + 1]
        label = int(classifier(x)[0].argmax())
        first = video_cam(classifier, x, label)
        mask = soft(guided(classifier, x, label), slope, scale)
        second = video_cam(classifier, x * mask, label)
        total = total - pearson(squash(first), squash(second)) / len(clips)
    return total


def layer_attention(classifier, images, labels, layer, inner, form, separation):
    """`labels[i]` are the classes of image i."""
    total = 0
    eps = torch.finfo(torch.float32).eps
    for i in range(len(images)):
        if not labels[i]:
            continue
        logits = classifier(images[i : i + 1])[0]
        others = [k for k in range(len(logits)) if k not in labels[i]]
        cams = {}
        for name, path in (("top", layer), ("in", inner)):
            for label in [min(labels[i]), *others]:
                target, classifier.target_layer = classifier.target_layer, path
                cams[name, label] = grad_cam(classifier, images[i : i + 1], label).clamp(min=0)
                classifier.target_layer = target
        top, low = cams["top", min(labels[i])], cams["in", min(labels[i])]
        if top.max() == top.min():
            continue

        def scaled(cam):
            a, b = cam.min().item(), cam.max().item()
            return (cam - a + eps) / (b - a + eps)

        mask = eps + torch.sigmoid(100 * (scaled(top) - 0.55))
        a = scaled(low)
        if form == "ratio":
            total = total + 0.8 - ((a * mask).sum() + eps) / (a.sum() + eps)
        else:
            total = total - 2 * (a * mask).sum() / (a.sum() + mask.sum())
        if separation and others:
            confused = cams["top", max(others, key=lambda k: logits[k].item())]
            smaller = torch.where(top < confused, top, confused)
            total = total + 2 * (smaller * mask).sum() / ((top + confused).sum() + eps)
    return total / len(images)
