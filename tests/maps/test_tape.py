from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from tests.maps.networks import CLASSES, DeepHead, batch, make
from tests.maps.twins import parts
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.models import Classifier, build_classifier

CASES = torch.tensor([[2, 1], [0, 3], [2, 0], [1, 1], [2, 1]])


@pytest.mark.parametrize("needs", [set(), {"input_gradient"}])
@pytest.mark.parametrize("kind", ["relu", "deep", "nhwc", "tokens"])
def test_features_and_gradients_of_any_cases_in_any_order(kind, needs):
    classifier, images = make(kind), batch(3, (16, 24) if kind == "nhwc" else (16, 16))
    tape = Tape(classifier, images, needs=needs)
    gradients = tape.gradient(CASES)
    torch.testing.assert_close(tape.logits, classifier(images))
    for (row, label), gradient, features in zip(CASES.tolist(), gradients, tape.select(CASES), strict=True):
        a, g, score = parts(classifier, images[row], label)
        torch.testing.assert_close(features.detach().numpy(), a, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(gradient.numpy(), g, rtol=1e-10, atol=1e-13)
        assert tape.logits[row, label].item() == pytest.approx(score)
    assert tape.gradient(CASES) is gradients
    assert len(tape.gradient(CASES[:0])) == 0


def state(classifier: Classifier) -> list[object]:
    network = classifier.network
    return [
        [(module, module.training) for module in classifier.modules()],
        [(p, p.grad, p.requires_grad) for p in network.parameters()],
        [b.clone() for b in network.buffers()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in network.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        torch.overrides._get_current_function_mode_stack(),
    ]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or a == b


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise IndexError("inside the model")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("names", [["gradcam", "cam"], ["guidedbackprop"], ["ablationcam"], ["smoothgrad"]])
def test_nothing_is_left_behind(names, fails):
    classifier = make("deep" if "cam" not in names else "relu", style="inplace")
    network = classifier.network
    classifier.train()  # dropout and batch norm would draw and move
    next(network.children()).eval()
    for p in network.parameters():
        p.grad = torch.full_like(p, 7.0)
    list(network.parameters())[1].requires_grad_(False)
    if fails:
        module = network.head if hasattr(network, "head") else network.fc
        failing = Fails()
        setattr(network, "head" if hasattr(network, "head") else "fc", failing)
        assert module is not failing
    before = state(classifier)
    if fails:
        with pytest.raises(IndexError, match="inside the model"):
            attention_maps(classifier, batch().double(), [0, 1, 2], names)
    else:
        attention_maps(classifier, batch().double(), [0, 1, 2], names)
    assert same(state(classifier), before)


def test_training_mode_gives_the_maps_of_evaluation_mode():
    classifier, images = make("deep"), batch()
    expected = attention_maps(classifier, images, [0, 1, 2]).maps["gradcam"]
    assert torch.equal(attention_maps(classifier.train(), images, [0, 1, 2]).maps["gradcam"], expected)
    as_it_is = Tape(classifier, images, eval_mode=False)
    assert not torch.equal(as_it_is.logits, Tape(classifier, images).logits)


@pytest.mark.parametrize("names", [["gradcam", "layercam"], ["gradient", "guidedbackprop", "gradcam"]])
def test_frozen_no_grad_and_inference_mode(names):
    classifier, images = make("deep", seed=2), batch()
    expected = attention_maps(classifier, images, [0, 1, 2], names).maps
    classifier.requires_grad_(False)
    results = [attention_maps(classifier, images, [0, 1, 2], names).maps]
    with torch.no_grad():
        results.append(attention_maps(classifier, images, [0, 1, 2], names).maps)
    with torch.inference_mode():
        results.append(attention_maps(classifier, images.clone(), [0, 1, 2], names).maps)
    for maps in results:
        for name in names:
            assert torch.equal(maps[name], expected[name])


def test_late_gradients_do_not_need_a_graph_of_the_body():
    tape = Tape(make("deep"), batch())
    assert tape._leaf.grad_fn is None
    assert tape.logits.requires_grad
    whole = Tape(make("deep"), batch(), create_graph=True)
    assert whole._leaf.grad_fn is not None


@pytest.mark.parametrize("kind", ["autocast", "bf16", "fp16", "channels_last"])
def test_precision_and_memory_format(kind):
    torch.manual_seed(0)
    classifier = build_classifier("resnet18", CLASSES).eval()
    images = torch.randn(2, 3, 64, 64)
    names = ["gradcam", "layercam", "gradient", "cam", "eigencam", "guidedbackprop", "gradcam++"]
    expected = attention_maps(classifier, images, [0, 1], names).maps
    if kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            maps = attention_maps(classifier, images, [0, 1], names).maps
    elif kind == "channels_last":
        classifier.to(memory_format=torch.channels_last)
        maps = attention_maps(classifier, images.to(memory_format=torch.channels_last), [0, 1], names).maps
    else:
        dtype = torch.bfloat16 if kind == "bf16" else torch.float16
        maps = attention_maps(classifier.to(dtype), images.to(dtype), [0, 1], names).maps
    for name in names:
        assert maps[name].dtype == torch.float32
        error = (maps[name] - expected[name]).abs().max() / expected[name].abs().max()
        rough = 0.3 if name in ("gradient", "guidedbackprop", "eigencam") else 0.08
        assert error < (1e-4 if kind == "channels_last" else rough), (name, error)


def test_no_graph_outlives_the_tape():
    tape = Tape(make("relu"), batch(), needs={"input_gradient"})
    tape.input_gradient(torch.tensor([[0, 0]]), rule="guided")
    features, leaf = weakref.ref(tape.features), weakref.ref(tape._leaf)
    gc.disable()
    try:
        del tape
        assert features() is None
        assert leaf() is None  # freed by reference counting: no cycle holds the activations
    finally:
        gc.enable()


def test_create_graph_continues_the_graph_of_the_images():
    classifier, images = make("relu"), batch().requires_grad_()
    tape = Tape(classifier, images * 2, needs={"input_gradient"}, create_graph=True)
    maps = METHODS["gradcam"](tape, CASES, create_graph=True, relu=False)
    (through,) = torch.autograd.grad(maps.pow(2).sum(), images)
    assert through.abs().max() > 0
    detached = Tape(classifier, images * 2)
    assert not detached.images.requires_grad


def test_derivatives_of_maps_need_a_tape_made_for_them():
    tape = Tape(make("relu"), batch())
    with pytest.raises(ConfigError, match="create_graph=True when it was made"):
        tape.gradient(CASES, create_graph=True)
    with pytest.raises(ConfigError, match="input_gradient"):
        tape.input_gradient(CASES)


@pytest.mark.parametrize("cases", [[[3, 0]], [[0, 4]], [[-1, 0]], [0, 1], [[0.0, 1.0]]])
def test_wrong_cases(cases):
    with pytest.raises(ConfigError, match="cases"):
        Tape(make("relu"), batch()).gradient(torch.tensor(cases))


def test_class_token_alone_reached():
    tape = Tape(make("tokens", target_layer="out"), batch())
    with pytest.raises(ModelError, match=r"class token alone.*LayerNorm of the last block"):
        tape.gradient(CASES)


def test_zero_class_weights_are_no_error():
    classifier = make("relu")
    nn.init.zeros_(classifier.network.fc.weight)
    assert (attention_maps(classifier, batch(), [0, 1, 2]).maps["gradcam"] == 0).all()


def test_target_layers_that_cannot_serve():
    with pytest.raises(ModelError, match="3 runs"):
        Tape(make("relu", style="shared", target_layer="relus.0"), batch())
    with pytest.raises(ModelError, match="0 runs"):
        Tape(make("relu", style="functional", target_layer="relus.0"), batch())
    with pytest.raises(ModelError, match="got tuple"):
        Tape(make("tokens", target_layer="attention"), batch())
    with pytest.raises(ModelError, match="3x20"):
        Tape(make("deep", target_layer="head.2"), batch())
    classifier = make("deep")
    classifier.network.head.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))
    with pytest.raises(ModelError, match="cuts the graph"):
        Tape(classifier, batch().requires_grad_()).gradient(CASES)


def test_tokens_that_are_no_square_grid():
    with pytest.raises(ModelError, match="square grid, got a tensor of shape 1x25x8"):
        Tape(make("tokens"), batch(1, (16, 24)))


def test_class_weights():
    classifier = make("relu")
    weights = Tape(classifier, batch()).class_weights
    assert torch.equal(weights, classifier.network.fc.weight)
    assert weights.requires_grad
    for kind in ("deep", "tokens"):
        with pytest.raises(ModelError, match="Use gradcam or hirescam"):
            Tape(make(kind), batch()).class_weights


def test_zero_head_of_a_vision_transformer_is_not_taken_for_linear():
    classifier = make("tokens")
    nn.init.zeros_(classifier.network.head.weight)
    with pytest.raises(ModelError, match="another kind of head"):
        Tape(classifier, batch()).class_weights


def test_squeezenet_class_weights_are_its_convolution():
    torch.manual_seed(1)
    classifier = build_classifier("squeezenet1_1", CLASSES)
    tape = Tape(classifier, torch.randn(2, 3, 64, 64))
    assert not tape.linear_head
    expected = nn.functional.conv2d(tape.features, classifier.network.classifier[1].weight)
    found = METHODS["cam"](tape, torch.tensor([[0, 1], [1, 3]]))
    torch.testing.assert_close(found, torch.stack([expected[0, 1], expected[1, 3]]))


@pytest.mark.parametrize("kind", ["relu", "deep", "nhwc", "tokens"])
def test_replay(kind):
    classifier, images = make(kind), batch()
    tape = Tape(classifier, images)
    torch.testing.assert_close(tape.replay(tape.features), tape.logits.detach())
    changed = torch.stack([tape.features[1].detach() * factor for factor in (0.0, 0.5, 1.0, 2.0)])
    found = tape.replay(changed, row=1)
    torch.testing.assert_close(found[2], tape.logits[1].detach())
    for row in range(4):
        alone = tape.replay(changed[row : row + 1], row=1)
        torch.testing.assert_close(alone[0], found[row])
    with pytest.raises(ConfigError, match="features of 3 images"):
        tape.replay(changed)


class WithAttention(DeepHead):
    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Conv2d(5, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.last(self.body(x))
        return self.head(features * self.where(features).sigmoid())


def test_attention_of_a_head_that_has_one():
    network = WithAttention()
    classifier = Classifier(
        network, arch="x", classes=CLASSES, target_layer="last", attention_layer="where"
    ).eval()
    images = batch().float()
    expected = network.where(network.last(network.body(images)))
    torch.testing.assert_close(Tape(classifier, images).attention, expected)
    assert attention_maps(classifier, images, [0, 1, 2], ["attention"]).maps["attention"].ndim == 3
    with pytest.raises(ModelError, match="Use gradcam"):
        Tape(make("deep"), batch()).attention


def test_densenet_maps_come_from_after_its_last_relu():
    torch.manual_seed(0)
    classifier = build_classifier("densenet121", CLASSES).eval()
    images = torch.randn(2, 3, 64, 64)
    tape = Tape(classifier, images)
    assert tape.features.min() == 0
    assert tape.linear_head
    mean = METHODS["cam"](tape, torch.tensor([[0, 1], [1, 2]])).mean((1, 2))
    torch.testing.assert_close(
        mean + classifier.network.classifier.bias[[1, 2]], tape.logits[[0, 1], [1, 2]], rtol=1e-4, atol=1e-5
    )
