"""Networks by name: torchvision's, `timm:NAME`, `module:factory`, `smallnet`, and LTPA's 32-pixel VGG.

The default target layer is the last one with a spatial grid whose gradient speaks of every cell:

- ResNet and its kin, RegNet, GoogLeNet, Inception, MobileNetV2, MnasNet, ShuffleNet, EfficientNet, Swin: what
  is average-pooled before the linear layer, so `cam` is exact.
- DenseNet applies its last ReLU as a function, between `features` and the pooling. A parameter-free ReLU is
  appended to `features` here: the output is the same, and what is pooled becomes a layer.
- SqueezeNet's head is a 1×1 convolution, ReLU and pooling; its target is `features` and that convolution's
  weights are the class weights of `cam` (the ReLU after it and the bias are not part of the map).
- VGG, AlexNet: the ReLU before the last max-pooling (14×14, 13×13): not `avgpool`, which is coarser.
- MobileNetV3, ConvNeXt, MaxViT: the last stage; a nonlinear head follows, so there is no `cam`.
- ViT: the first LayerNorm of the last block. At the block's output only the class token reaches the logits,
  and the gradient at all patches is zero.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision import models as tv

from wsod.errors import CheckpointError, ConfigError, ModelError
from wsod.models.cifarvgg import CifarVGG
from wsod.models.classifier import Layout
from wsod.models.preprocess import Preprocess, Triple
from wsod.models.smallnet import SmallNet
from wsod.registry import Registry, nearest

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "describe_target",
    "find_architecture",
    "module_architecture",
    "probe_target_layer",
]


def _no_weights(size: int) -> Mapping[str, Tensor]:
    raise CheckpointError("weights", "published weights of this architecture", "none", "Pass a file instead.")


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and where to look into it.

    Args:
        name: as the user gives it.
        build: (number of classes, input side in pixels) → network with random weights.
        target_layer: path of the default target layer, `-1` counting from the end; None = found by a probe.
        preprocess: what its published weights were evaluated with, in `squash` mode.
        layout: of the target layer's output.
        prefix: tokens before the grid.
        fetch: (input side) → the published state dict, downloaded.
        class_names: of the published weights.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    target_layer: str | None = None
    preprocess: Callable[[], Preprocess] = Preprocess
    layout: Layout = "NCHW"
    prefix: int = 0
    fetch: Callable[[int], Mapping[str, Tensor]] = _no_weights
    class_names: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class _Family:
    target_layer: str
    layout: Layout = "NCHW"
    prefix: int = 0
    # keyword arguments of torchvision's builder; "{size}" stands for the input side
    arguments: Mapping[str, Any] = field(default_factory=dict)


# transform_input is what the published GoogLeNet and Inception weights expect; it has to be the same
# whenever such a network is built, and is harmless where training starts from nothing
_INCEPTION = {"aux_logits": False, "init_weights": True, "transform_input": True}

_FAMILIES = {
    "alexnet": _Family("features.-2"),
    "convnext": _Family("features"),
    "densenet": _Family("features"),
    "efficientnet": _Family("features"),
    "googlenet": _Family("inception5b", arguments=_INCEPTION),
    "inception": _Family("Mixed_7c", arguments=_INCEPTION),
    "maxvit": _Family("blocks.-1", arguments={"input_size": ("{size}", "{size}")}),
    "mnasnet": _Family("layers"),
    "mobilenet": _Family("features"),
    "regnet": _Family("trunk_output"),
    "resnet": _Family("layer4"),
    "resnext": _Family("layer4"),
    "shufflenet": _Family("conv5"),
    "squeezenet": _Family("features"),
    "swin": _Family("norm", "NHWC"),
    "vgg": _Family("features.-2"),
    "vit": _Family("encoder.layers.-1.ln_1", "tokens", 1, {"image_size": "{size}"}),
    "wide_resnet": _Family("layer4"),
}


class _LastReLU(nn.ReLU):
    """A ReLU whose output may be overwritten, as DenseNet does next, though autograd keeps the original."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clone()


def _build_torchvision(name: str, family: _Family, classes: int, size: int) -> nn.Module:
    arguments = {
        key: size if value == "{size}" else (size, size) if isinstance(value, tuple) else value
        for key, value in family.arguments.items()
    }
    try:
        network: nn.Module = tv.get_model(name, weights=None, num_classes=classes, **arguments)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{name} at {size} px", "an input side it can take", error) from error
    if name.startswith("densenet"):
        cast(nn.Sequential, network.features).add_module("relu", _LastReLU())
    return network


def _fetch_torchvision(name: str, size: int) -> Mapping[str, Tensor]:
    weights = tv.get_model_weights(name).DEFAULT
    state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    return state


def _preprocess_torchvision(name: str) -> Preprocess:
    transforms = tv.get_model_weights(name).DEFAULT.transforms()
    return Preprocess(
        transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        resize=transforms.resize_size[0],
    )


def _imagenet_classes() -> tuple[str, ...]:
    return tuple(tv.ResNet50_Weights.DEFAULT.meta["categories"])


def _torchvision(name: str) -> Architecture:
    family = next(_FAMILIES[key] for key in sorted(_FAMILIES, reverse=True) if name.startswith(key))
    return Architecture(
        name,
        partial(_build_torchvision, name, family),
        family.target_layer,
        partial(_preprocess_torchvision, name),
        family.layout,
        family.prefix,
        partial(_fetch_torchvision, name),
        _imagenet_classes,
    )


def _build_smallnet(width: int, classes: int, size: int) -> nn.Module:
    return SmallNet(classes, width)


def _build_cifarvgg(attention: bool, classes: int, size: int) -> nn.Module:
    return CifarVGG(classes, size, attention=attention)


_known = [name for name in tv.list_models(module=tv) if name.startswith(tuple(_FAMILIES))]

ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    {name: _torchvision(name) for name in _known}
    | {
        "smallnet": Architecture(
            "smallnet", partial(_build_smallnet, 32), "blocks", partial(Preprocess, 128)
        ),
        "tinynet": Architecture("tinynet", partial(_build_smallnet, 16), "blocks", partial(Preprocess, 64)),
        "cifarvgg": Architecture(
            "cifarvgg", partial(_build_cifarvgg, False), "features", partial(Preprocess, 32)
        ),
        "cifarvgg_att": Architecture(
            "cifarvgg_att", partial(_build_cifarvgg, True), "features", partial(Preprocess, 32)
        ),
    },
)


def _timm(name: str) -> Architecture:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"timm:{name}", "the package timm", "none", "pip install 'wsod[timm]'.") from error
    model = name.split(".")[0]
    if not timm.is_model(model):
        raise ConfigError("timm", "a model of timm", repr(name), nearest(model, timm.list_models()))
    config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()

    def create(size: int, **arguments: Any) -> nn.Module:
        # transformers have to be told the input side; networks that take any do not know the argument
        network: nn.Module
        if config.fixed_input_size or size != config.input_size[-1]:
            with contextlib.suppress(TypeError):
                network = timm.create_model(name, img_size=size, **arguments)
                return network
        network = timm.create_model(name, **arguments)
        return network

    def build(classes: int, size: int) -> nn.Module:
        return create(size, num_classes=classes)

    def fetch(size: int) -> Mapping[str, Tensor]:
        state: Mapping[str, Tensor] = create(size, pretrained=True).state_dict()
        return state

    def preprocess() -> Preprocess:
        return Preprocess(
            config.input_size[-1],
            mean=cast(Triple, config.mean),
            std=cast(Triple, config.std),
            interpolation=cast(Literal["bilinear", "bicubic"], config.interpolation),
        )

    def class_names() -> tuple[str, ...]:
        return _imagenet_classes() if config.num_classes == 1000 else ()

    return Architecture(f"timm:{name}", build, None, preprocess, fetch=fetch, class_names=class_names)


def _factory(name: str) -> Architecture:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--arch {name}", "an importable module:factory", error) from error

    def build(classes: int, size: int) -> nn.Module:
        network = factory(classes)
        if not isinstance(network, nn.Module):
            raise ConfigError(f"--arch {name}", "a factory(classes) -> nn.Module", type(network).__name__)
        return network

    return Architecture(name, build)


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Args:
        name: an entry of `ARCHITECTURES`, `timm:NAME`, or `module:factory`, where `factory(classes)` returns
            the network. The last one imports and runs that module.

    Raises:
        ConfigError: where there is none, with the nearest name.
    """
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"))
    if ":" in name:
        return _factory(name)
    return ARCHITECTURES[name]


def describe_target(architecture: Architecture, network: nn.Module, size: int) -> Architecture:
    """`architecture` with its target layer filled in, where only the built network can tell."""
    if architecture.target_layer is not None:
        return architecture
    prefix = getattr(network, "num_prefix_tokens", None)
    if isinstance(prefix, int) and hasattr(network, "blocks"):  # timm's vision transformers
        return replace(architecture, target_layer="blocks.-1.norm1", layout="tokens", prefix=prefix)
    if getattr(network, "output_fmt", "NCHW") == "NHWC" and hasattr(network, "norm"):  # timm's Swin
        return replace(architecture, target_layer="norm", layout="NHWC")
    return replace(architecture, target_layer=probe_target_layer(network, size))


def module_architecture(network: nn.Module, size: int) -> Architecture:
    """What is known of a network that somebody else built: torchvision's by its class, others by a probe."""
    package, _, module = type(network).__module__.rpartition(".")
    module = {"vision_transformer": "vit", "swin_transformer": "swin"}.get(module, module)
    name = type(network).__name__

    def build(classes: int, size: int) -> nn.Module:
        return network

    family = next((_FAMILIES[key] for key in _FAMILIES if module.startswith(key)), None)
    if package == "torchvision.models" and family:
        return Architecture(name, build, family.target_layer, layout=family.layout, prefix=family.prefix)
    if isinstance(network, SmallNet):
        return Architecture(name, build, "blocks", partial(Preprocess, 128))
    return describe_target(Architecture(name, build), network, size)


def probe_target_layer(network: nn.Module, size: int) -> str:
    """The last module to run that gives (N, D, h, w) with more than one cell and is no pooling.

    Runs the network once on zeros, in evaluation mode, and leaves it as it was.

    Raises:
        ModelError: where no module does.
    """
    passive = (
        nn.AdaptiveAvgPool2d,
        nn.AvgPool2d,
        nn.MaxPool2d,
        nn.AdaptiveMaxPool2d,
        nn.Dropout,
        nn.Identity,
    )
    found: list[str] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        spatial = isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1
        if spatial and not isinstance(module, passive):
            found.append(name)

    modes = {module: module.training for module in network.modules()}
    hooks = [m.register_forward_hook(partial(note, name)) for name, m in network.named_modules() if name]
    like = next(network.parameters(), torch.zeros(()))
    try:
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not found:
        raise ModelError(
            type(network).__name__, "a layer with spatial feature maps", "none", "Pass --target-layer."
        )
    return found[-1]
