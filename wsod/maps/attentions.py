"""What each transformer block attends to, taken from a forward pass of an untouched network.

A `TorchFunctionMode` computes self-attention in the open: fused attention (`scaled_dot_product_attention`)
and `nn.MultiheadAttention` are written out as softmax(QKᵀ/√d)·V, attention that a network writes out itself
is recognised by its softmax. No module is replaced, nothing global is patched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsod.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from wsod.maps.tape import Tape

__all__ = ["AttentionMode", "attention_gradients", "attention_mode", "attentions"]

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}


class AttentionMode(TorchFunctionMode):
    """While active, the weights of every self-attention are kept, in the order of the blocks.

    The values of the network do not change, up to the rounding by which fused attention differs. Works on
    the current thread, on eager code: not inside scripted or compiled modules.

    Args:
        gradients: the logits will be differentiated with respect to the weights: a graph begins at the first
            of them.

    Attributes:
        weights: (N, heads, T, T) a block; row: the token that attends, column: the token attended to.
    """

    def __init__(self, gradients: bool) -> None:
        super().__init__()
        self.gradients = gradients
        self.weights: list[Tensor] = []
        self._written_out: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._attend,
            F.multi_head_attention_forward: self._multi_head,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._written_out:
            result = self._written_out[func](*args, **kwargs)
            return func(*args, **kwargs) if result is None else result
        result = func(*args, **kwargs)
        if func in _SOFTMAXES and result.ndim == 4 and result.shape[2] == result.shape[3]:
            return self._keep(result)
        return result

    def _keep(self, weights: Tensor) -> Tensor:
        if self.gradients and not (torch.is_grad_enabled() and weights.requires_grad):
            torch.set_grad_enabled(True)
            weights = weights.detach().requires_grad_()
        self.weights.append(weights)
        return weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        """(N, heads, T, d) → the same: softmax(QKᵀ·scale + mask)·V; None for what is no self-attention."""
        if query.ndim != 4 or query.shape[2] != key.shape[2] or is_causal or enable_gqa:
            return None
        scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(2, 3)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = self._keep(scores.softmax(-1))
        return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None] | None:
        """`F.multi_head_attention_forward`, written out; None for its rarer options."""
        bound = _SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        rare = ("bias_k", "bias_v", "key_padding_mask", "static_k", "static_v")
        unusual = given["add_zero_attn"] or given["is_causal"] or any(given[key] is not None for key in rare)
        query, heads = given["query"], given["num_heads"]
        if unusual or query.ndim != 3 or len(query) != len(given["key"]):
            return None
        tokens, images, width = query.shape
        if given["use_separate_proj_weight"]:
            projections = [given[f"{name}_proj_weight"] for name in "qkv"]
        else:
            projections = given["in_proj_weight"].chunk(3)
        offset = given["in_proj_bias"]
        offsets = [None] * 3 if offset is None else offset.chunk(3)
        q, k, v = (
            F.linear(given[name], weight, bias).reshape(tokens, images, heads, -1).permute(1, 2, 0, 3)
            for name, weight, bias in zip(("query", "key", "value"), projections, offsets, strict=True)
        )
        mask = given["attn_mask"]
        if mask is not None:
            if mask.dtype == torch.bool:  # here True forbids, in scaled_dot_product_attention it allows
                mask = ~mask
            mask = mask.reshape(-1, heads, tokens, tokens) if mask.ndim == 3 else mask
        mixed = self._attend(q, k, v, mask, given["dropout_p"] if given["training"] else 0.0)
        assert mixed is not None
        mixed = mixed.permute(2, 0, 1, 3).reshape(tokens, images, width)
        output = F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"])
        if not given["need_weights"]:
            return output, None
        weights = self.weights[-1]
        return output, weights.mean(1) if given["average_attn_weights"] else weights


def attention_mode(needs: Set[str]) -> AttentionMode | None:
    """What records attention weights, where a method needs them."""
    if not needs & {"attentions", "attention_gradients"}:
        return None
    return AttentionMode("attention_gradients" in needs)


def attentions(tape: Tape) -> list[Tensor]:
    """(N, heads, T, T) attention weights of each block, T tokens being the prefix and the grid.

    Args:
        tape: a forward pass that needs `attentions` or `attention_gradients`.

    Raises:
        ModelError: where the network has no attention between all tokens of its grid.
    """
    if tape.attention_mode is None:
        raise ConfigError("Tape", "needs={'attentions'} for attention weights", sorted(tape.needs))
    weights, classifier = tape.attention_mode.weights, tape.classifier
    tokens = classifier.prefix + tape.features.shape[2] * tape.features.shape[3]
    shapes = {(len(weight), weight.shape[-1]) for weight in weights}
    if classifier.layout != "tokens" or shapes != {(len(tape.images), tokens)}:
        found = sorted({size for _, size in shapes})
        raise ModelError(
            classifier.arch,
            "a vision transformer whose blocks attend between all tokens of the grid",
            f"attention between {' and '.join(map(str, found))} tokens" if found else "no attention",
            "Use gradcam.",
        )
    return weights


def attention_gradients(tape: Tape, cases: Tensor, create_graph: bool = False) -> list[Tensor]:
    """∂ logit of each case / ∂ attention weights of each block, (M, heads, T, T) each.

    Args:
        tape: a forward pass that needs `attention_gradients`.
        cases: (M, 2) int64, rows of (row, label).
        create_graph: differentiable; the tape has to be made with `create_graph=True`.

    Raises:
        ModelError: where the network has no such attention, or the logits do not depend on it.
    """
    weights = attentions(tape)
    if "attention_gradients" not in tape.needs:
        raise ConfigError("Tape", "needs={'attention_gradients'} for their gradients", sorted(tape.needs))
    found = tape.derivatives("attentions", weights, cases, create_graph)
    known = [gradient for gradient in found if gradient is not None]
    if len(known) < len(found):
        raise ModelError(
            tape.classifier.arch,
            "logits that depend on the attention of every block",
            f"{len(known)} of {len(found)} blocks",
            "Use rollout.",
        )
    return known
