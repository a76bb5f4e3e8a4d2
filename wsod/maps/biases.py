"""The layers that add a bias to every cell: what a score has that its input's gradient does not explain."""

from __future__ import annotations

from torch import Tensor, nn

from wsod.errors import ModelError
from wsod.models.classifier import Classifier

__all__ = ["bias_layers"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)


def bias_layers(classifier: Classifier) -> dict[str, Tensor]:
    """Paths of the convolutions and batch norms, each with what it adds to its (linear) output, (D,).

    A convolution adds its bias b. Batch norm in evaluation mode, γ·(x - μ)/√(σ² + ε) + β, adds
    β - γ·μ/√(σ² + ε).

    Raises:
        ModelError: where another kind of normalisation divides by statistics of the image itself.
    """
    found: dict[str, Tensor] = {}
    for path, module in classifier.network.named_modules():
        if isinstance(module, _NORMS) or (isinstance(module, nn.BatchNorm2d) and module.running_var is None):
            raise ModelError(
                f"{classifier.arch}, layer {path}",
                "convolutions, batch norms and ReLUs, for a score that is the sum of its full gradient",
                type(module).__name__,
                "Use gradcam or integratedgradients.",
            )
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            found[path] = module.bias
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            scale = (module.running_var + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight
            shift = -module.running_mean * scale
            found[path] = shift if module.bias is None else shift + module.bias
    return found
