"""Batch norms folded into the convolutions before them: the same function in fewer passes over memory."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsod.models.classifier import Classifier

__all__ = ["folded"]


def folded(classifier: Classifier) -> Classifier:
    """A classifier whose batch norms are folded into the convolutions that alone feed them.

    W' = W·γ/√(σ² + ε), b' = (b - μ)·γ/√(σ² + ε) + β: exact in evaluation mode, up to rounding. All other
    layers are shared with the original, which is left as it is; the folded convolutions are copies, laid out
    channels-last.

    Args:
        classifier: in evaluation mode.

    Returns:
        The folded one; `classifier` itself where nothing can be folded: its forward pass depends on the data
        or cannot be traced, or somebody's hooks look into it.
    """
    network = classifier.network
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    norms = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if watched or not norms or any(module.training for module in network.modules()):
        return classifier
    try:
        traced = fx.symbolic_trace(network)
    except Exception:
        # networks are free to branch on values or unpack shapes, and then run as they are
        return classifier
    calls: dict[object, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        norm, layer = (traced.get_submodule(str(one.target)) for one in (node, source))
        if type(layer) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_var is None:
            continue
        if calls[node.target] > 1 or calls[source.target] > 1:
            continue
        fused = fuse_conv_bn_eval(layer, norm).to(memory_format=torch.channels_last)
        parent, _, name = str(source.target).rpartition(".")
        setattr(traced.get_submodule(parent), name, fused)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    copied = copy.copy(classifier)
    copied._modules = {**classifier._modules, "network": traced}
    return copied
