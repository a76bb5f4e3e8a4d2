"""Attention weights of untouched networks: torchvision's and timm's, fused or written out, any grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.maps.networks import CLASSES, batch, make
from tests.maps.test_tape import same, state
from tests.maps.twins import TWINS
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.attentions import AttentionMode, attention_gradients, attentions
from wsod.models import Classifier, build_classifier

NAMES = ["rollout", "gradientrollout", "transmm", "legrad"]
CASES = torch.tensor([[0, 1], [1, 2], [0, 3]])


def timm_vit(size: tuple[int, int] = (16, 24), *, fused: bool = True, **options: object) -> Classifier:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            size, 4, num_classes=len(CLASSES), embed_dim=8, depth=3, num_heads=2, mlp_ratio=2, **options
        )
        nn.init.normal_(network.head.weight)
    for block in network.blocks:
        block.attn.fused_attn = fused
    return Classifier(
        network.double().eval(),
        arch="timm",
        classes=CLASSES,
        target_layer="blocks.-1.norm1",
        layout="tokens",
        prefix=network.num_prefix_tokens,
    ).eval()


def watched(classifier: Classifier, images: Tensor) -> list[Tensor]:
    """timm's unfused attention as its modules see it: what goes into the dropout of the weights."""
    kept: list[Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        for block in classifier.network.blocks
    ]
    classifier(images)
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_timm_fused_and_written_out_give_the_same_weights(options):
    images = batch(2, (16, 24))
    expected = watched(timm_vit(fused=False, **options), images)
    for fused in (True, False):
        classifier = timm_vit(fused=fused, **options)
        tape = Tape(classifier, images, needs={"attention_gradients"})
        assert tape.features.shape[2:] == (4, 6)
        torch.testing.assert_close(tape.logits, classifier(images), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(attentions(tape), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(attentions(tape)[0].sum(3), torch.ones_like(expected[0][..., 0]))


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_by_finite_differences(fused):
    """The weights of one block changed by a little, the rest of the network run again."""
    classifier, images = timm_vit(fused=fused), batch(1, (16, 24))
    tape = Tape(classifier, images, needs={"attention_gradients"})
    gradients = attention_gradients(tape, torch.tensor([[0, 2]]))
    unfused = timm_vit(fused=False)
    for index, gradient in enumerate(gradients):
        generator = torch.Generator().manual_seed(index)
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            hook = unfused.network.blocks[index].attn.attn_drop.register_forward_hook(
                lambda module, inputs, output, change=step * direction: output + change
            )
            values.append(float(unfused(images)[0, 2].detach()))
            hook.remove()
        slope = float((gradient * direction).sum())
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", [None, "float", "bool", "per_head"])
@pytest.mark.parametrize("separate", [False, True])
def test_multihead_attention_written_out(separate, mask, need_weights):
    torch.manual_seed(0)
    sizes = {"kdim": 6, "vdim": 4} if separate else {}
    module = nn.MultiheadAttention(8, 2, batch_first=True, **sizes).double().eval()
    query, key, value = (torch.randn(3, 5, d).double() for d in ((8, 6, 4) if separate else (8, 8, 8)))
    masks = {
        None: None,
        "float": torch.randn(5, 5).double(),
        "bool": torch.ones(5, 5).triu(1).bool(),
        "per_head": torch.randn(6, 5, 5).double(),
    }
    options = {"attn_mask": masks[mask], "need_weights": need_weights, "average_attn_weights": False}
    expected, _ = module(query, key, value, **options)
    _, weights = module(query, key, value, **options | {"need_weights": True})
    for gradients in (False, True):
        with torch.no_grad(), AttentionMode(gradients) as mode:
            found, given = module(query, key, value, **options)
            assert torch.is_grad_enabled() == gradients
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mode.weights, [weights])
        assert mode.weights[0].requires_grad == gradients
        assert (given is not None) == need_weights


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_fused_attention_written_out(mask):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    masks = {None: None, "float": q[0, 0] @ k[0, 0].T, "bool": torch.ones(5, 5).tril().bool()}
    for options in ({}, {"scale": 0.3}):
        expected = F.scaled_dot_product_attention(q, k, v, masks[mask], **options)
        with AttentionMode(False) as mode:
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[mask], **options)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mode.weights[0] @ v, expected)


def test_what_is_no_self_attention_runs_as_it_is():
    q, k = torch.randn(2, 3, 1, 4), torch.randn(2, 3, 5, 4)
    x = torch.randn(5, 2, 8)
    module = nn.MultiheadAttention(8, 2, add_bias_kv=True).eval()
    with torch.no_grad():
        expected = F.scaled_dot_product_attention(q, k, k), module(x, x, x)[0], torch.softmax(x, -1)
        with AttentionMode(True) as mode:
            found = F.scaled_dot_product_attention(q, k, k), module(x, x, x)[0], torch.softmax(x, -1)
    torch.testing.assert_close(found, expected)
    assert mode.weights == []


@pytest.mark.parametrize("reg_tokens", [0, 2])
def test_grids_that_are_no_square_and_register_tokens(reg_tokens):
    classifier, images = timm_vit(reg_tokens=reg_tokens), batch(2, (16, 24))
    found = attention_maps(classifier, images, [[1, 3], [2]], [*NAMES, "gradcam", "eigencam"])
    for name, maps in found.maps.items():
        assert maps.shape == (3, 4, 6), name
    assert all(found.maps[name].min() >= 0 for name in NAMES)
    for row, maps in zip(found.cases[:, 0].tolist(), found.maps["rollout"], strict=True):
        product = torch.eye(25 + reg_tokens, dtype=torch.float64)
        for weights in watched(timm_vit(fused=False, reg_tokens=reg_tokens), images[row : row + 1]):
            product = (weights[0].mean(0) + torch.eye(len(product))) / 2 @ product
        expected = product[0, 1 + reg_tokens :].reshape(4, 6).detach()
        torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-12)
    # column by column of a different image: the map follows the patches, not the transposed grid
    moved = images.roll(8, dims=3)
    again = attention_maps(classifier, moved, [[1, 3], [2]], ["rollout"]).maps["rollout"]
    assert not torch.allclose(again, found.maps["rollout"])


def test_pooled_patches_are_followed_from_their_mean():
    classifier, images = timm_vit(class_token=False, global_pool="avg"), batch(1, (16, 24))
    tape = Tape(classifier, images, needs={"attentions"})
    maps = attention_maps(classifier, images, [0], ["rollout"]).maps["rollout"]
    product = torch.eye(24, dtype=torch.float64)
    for weights in attentions(tape):
        product = (weights[0].mean(0) + torch.eye(24)) / 2 @ product
    torch.testing.assert_close(maps[0], product.mean(0).reshape(4, 6).detach())
    assert float(maps.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:vit_tiny_patch16_224", 48),
        ("timm:vit_tiny_patch16_224", 96),
        pytest.param("vit_b_32", 96, marks=pytest.mark.slow),
        pytest.param("vit_b_16", 64, marks=pytest.mark.slow),
    ],
)
def test_token_cams_at_other_sizes(name, size):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    classifier = build_classifier(name, CLASSES, size=size).double().eval()
    head = classifier.network.get_submodule("head" if name.startswith("timm") else "heads.head")
    nn.init.normal_(head.weight, std=0.1)
    images = batch(1, (size, size))
    methods = ["gradcam", "hirescam", "layercam", "xgradcam", "elementgradcam", "eigencam"]
    found = attention_maps(classifier, images, [2], [*methods, *NAMES])
    cells = size // (32 if "32" in name else 16)
    for method, maps in found.maps.items():
        assert maps.shape == (1, cells, cells)
        assert torch.isfinite(maps).all()
        if method in methods:
            expected = TWINS[method](classifier, images[0], 2)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    classifier, images = make("vit"), batch(2)
    classifier.train()
    for p in classifier.parameters():
        p.grad = torch.full_like(p, 7.0)
    if fails:
        classifier.network.encoder.layers[1].mlp.register_forward_pre_hook(_fail)
    before = state(classifier)
    for name in NAMES:
        if fails:
            with pytest.raises(IndexError, match="inside"):
                attention_maps(classifier, images, [0, 1], [name])
        else:
            attention_maps(classifier, images, [0, 1], [name])
        assert same(state(classifier), before)


def _fail(module: nn.Module, inputs: object) -> None:
    raise IndexError("inside the model")


def test_legrad_cleans_up_when_its_own_pass_fails():
    classifier, images = make("vit"), batch(2)
    tape = Tape(classifier, images, needs={"attentions"})
    hook = classifier.network.encoder.ln.register_forward_pre_hook(_fail)
    before = state(classifier)
    with pytest.raises(IndexError, match="inside"):
        METHODS["legrad"](tape, CASES)
    assert same(state(classifier), before)
    hook.remove()


def test_frozen_no_grad_and_inference_mode():
    classifier, images = make("vit"), batch(2)
    expected = attention_maps(classifier, images, [0, 1], NAMES).maps
    classifier.requires_grad_(False)
    results = [attention_maps(classifier, images, [0, 1], NAMES).maps]
    with torch.no_grad():
        results.append(attention_maps(classifier, images, [0, 1], NAMES).maps)
    with torch.inference_mode():
        results.append(attention_maps(classifier, images.clone(), [0, 1], NAMES).maps)
    for maps in results:
        for name in NAMES:
            torch.testing.assert_close(maps[name], expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["autocast", "bf16"])
def test_half_precision(kind):
    classifier, images = make("vit").float(), batch(2).float()
    expected = attention_maps(classifier, images, [0, 1], NAMES).maps
    if kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            maps = attention_maps(classifier, images, [0, 1], NAMES).maps
    else:
        maps = attention_maps(classifier.bfloat16(), images.bfloat16(), [0, 1], NAMES).maps
    for name in NAMES:
        assert maps[name].dtype == torch.float32
        error = (maps[name] - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 0.1, (name, float(error))


def test_a_body_without_graph_until_the_first_attention():
    tape = Tape(make("vit"), batch(2), needs={"attention_gradients"})
    assert attentions(tape)[0].is_leaf
    plain = Tape(make("vit"), batch(2), needs={"attentions"})
    assert not attentions(plain)[0].requires_grad
    with pytest.raises(ConfigError, match="attention_gradients"):
        attention_gradients(plain, CASES)
    with pytest.raises(ConfigError, match="attentions"):
        attentions(Tape(make("vit"), batch(2)))


def test_gradients_are_shared():
    tape = Tape(make("vit"), batch(2), needs={"attention_gradients"})
    assert attention_gradients(tape, CASES)[0] is attention_gradients(tape, CASES)[0]


class Windows(nn.Module):
    """Attention inside four windows of an 8×8 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        w = x.reshape(-1, 2, 16, 8)
        x = x + F.scaled_dot_product_attention(w, w, w).reshape_as(x)
        return self.head(x.mean(1))


def test_refused_without_attention_between_all_tokens():
    windows = Classifier(
        Windows().double(), arch="w", classes=CLASSES, target_layer="norm", layout="tokens", prefix=0
    )
    for name in NAMES:
        with pytest.raises(ModelError, match=r"attention between 16 tokens\. Use gradcam"):
            attention_maps(windows, batch(2), [0, 1], [name])
        with pytest.raises(ModelError, match=r"no attention\. Use gradcam"):
            attention_maps(make("deep"), batch(2), [0, 1], [name])


def test_heads_fused_in_other_ways():
    tape = Tape(make("vit"), batch(1), needs={"attentions"})
    maps = {heads: METHODS["rollout"](tape, CASES[:1], heads=heads) for heads in ("mean", "max", "min")}
    product = torch.eye(17, dtype=torch.float64)
    for weights in attentions(tape):
        mixed = weights[0].amax(0) + torch.eye(17)
        product = mixed / mixed.sum(1, keepdim=True) @ product
    torch.testing.assert_close(maps["max"][0], product[0, 1:].reshape(4, 4))
    assert not torch.allclose(maps["mean"], maps["min"])
    with pytest.raises(ConfigError, match="heads"):
        METHODS["rollout"](tape, CASES[:1], heads="median")
