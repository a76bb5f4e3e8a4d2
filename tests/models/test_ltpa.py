"""Learn To Pay Attention: what the equations promise, on every level, compatibility and combination."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsod.maps import attention_maps
from wsod.models import build_classifier
from wsod.models.cifarvgg import CifarVGG
from wsod.models.heads.ltpa import LTPA, Level, LTPANetwork, forked

COMPAT = ("pc", "dp", "pc_relu")
WIDTHS = (4, 6)


def network(
    seed: int = 0, widths: tuple[int, ...] = WIDTHS, multilabel: bool = False, **options
) -> LTPANetwork:
    torch.manual_seed(seed)
    inputs = (3, *widths[:-1])
    pieces = [
        nn.Sequential(nn.Conv2d(a, b, 3, 1 + (n > 0), 1), nn.ReLU())
        for n, (a, b) in enumerate(zip(inputs, widths, strict=True))
    ]
    return LTPANetwork(pieces, widths, 3, LTPA(**options), multilabel).double().eval()


def images(n: int = 3, side: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(n: int = 3, seed: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, 4, 5, 5), (n, 6, 3, 3)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("compat", COMPAT)
@pytest.mark.parametrize(
    "arch", ["smallnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vgg11"))]
)
def test_attention_is_positive_and_sums_to_one(arch, compat):
    torch.manual_seed(0)
    options = {"compat": compat, "scaled": True}
    classifier = build_classifier(arch, list("abc"), head="ltpa", head_options=options, size=64).eval()
    with torch.no_grad():
        seen = classifier.network.look(torch.randn(2, 3, 64, 64))
    assert list(seen.attention) == ["level1", "level2"]
    for maps in seen.attention.values():
        assert (maps > 0).all()
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("compat", COMPAT)
def test_pc_alone_ignores_the_global_vector(compat):
    found, given = network(compat=compat), features()
    g = torch.randn(3, 6, dtype=torch.float64)
    a, b = found.attend(given, g), found.attend(given, g + torch.randn(6, dtype=torch.float64))
    same = all(torch.allclose(a.attention[k], b.attention[k], rtol=0, atol=1e-6) for k in a.attention)
    assert same == (compat == "pc")
    assert torch.allclose(a.logits, b.logits, rtol=0, atol=1e-6) == (compat == "pc")
    found(images()).square().sum().backward()
    largest = max(float(p.grad.abs().max()) for p in found.branch.parameters() if p.grad is not None)
    assert (largest < 1e-10) == (compat == "pc")


def test_dp_in_closed_form():
    level = Level(5, 5, LTPA(compat="dp"))
    given = torch.eye(5).reshape(1, 5, 5, 1)  # position i is the i-th unit vector
    scores, _ = level(given, 100 * torch.eye(5)[3:4])
    one_hot = scores.flatten(1).softmax(1)
    torch.testing.assert_close(one_hot, torch.eye(5)[3:4])
    found, given = network(compat="dp"), features()
    for part in found.levels:
        part.lower = nn.Identity()
    seen = network(widths=(6, 6), compat="dp").attend(
        [given[1], given[1]], torch.zeros(3, 6, dtype=torch.float64)
    )
    torch.testing.assert_close(seen.attention["level2"], torch.full((3, 3, 3), 1 / 9, dtype=torch.float64))
    torch.testing.assert_close(seen.contexts["level2"], given[1].mean((2, 3)))


@pytest.mark.parametrize("compat", COMPAT)
def test_contexts_are_convex_combinations(compat):
    found, given = network(compat=compat), features()
    seen = found.attend(given, torch.randn(3, 6, dtype=torch.float64))
    for context, values in zip(seen.contexts.values(), given, strict=True):
        assert (context >= values.amin((2, 3)) - 1e-12).all()
        assert (context <= values.amax((2, 3)) + 1e-12).all()
    constant = [values[:, :, :1, :1].expand_as(values) for values in given]
    seen = found.attend(constant, torch.randn(3, 6, dtype=torch.float64))
    for context, values in zip(seen.contexts.values(), constant, strict=True):
        torch.testing.assert_close(context, values[:, :, 0, 0])


@pytest.mark.parametrize("compat", COMPAT)
def test_permuted_positions_permute_the_map_and_leave_the_context(compat):
    found, given, g = network(compat=compat), features(), torch.randn(3, 6, dtype=torch.float64)
    order = torch.randperm(25)
    shuffled = given[0].flatten(2)[:, :, order].reshape(given[0].shape)
    a, b = found.attend(given, g), found.attend([shuffled, given[1]], g)
    torch.testing.assert_close(b.attention["level1"].flatten(1), a.attention["level1"].flatten(1)[:, order])
    torch.testing.assert_close(b.contexts["level1"], a.contexts["level1"])


def test_the_global_vector_never_reaches_the_classifier():
    found, given = network(compat="dp"), features()
    found.attention.forward = lambda scores: {
        k: torch.full_like(c, 1 / c[0].numel()) for k, c in scores.items()
    }
    a, b = (found.attend(given, g) for g in (torch.zeros(3, 6).double(), torch.randn(3, 6).double()))
    assert torch.equal(a.logits, b.logits)


@pytest.mark.slow
def test_shapes_and_sizes_of_the_papers_networks():
    with torch.device("meta"):
        trunk = CifarVGG(100).features
    assert sum(p.numel() for p in trunk.parameters()) == 14_723_136
    for levels, width in ((1, 512), (2, 1024), (3, 1280)):
        classifier = build_classifier(
            "cifarvgg_att", list(map(str, range(10))), head="ltpa", head_options={"levels": levels}
        ).eval()
        with torch.no_grad():
            seen = classifier.network.look(torch.randn(1, 3, 32, 32))
        assert seen.described.shape == (1, width)
        grids = [tuple(maps.shape[1:]) for maps in seen.attention.values()]
        assert grids == [(32, 32), (16, 16), (8, 8)][-levels:]
        assert [c.shape[1] for c in seen.contexts.values()] == [256, 512, 512][-levels:]
        assert seen.g.shape == (1, 512)
        assert sum(p.numel() for p in classifier.network.branch.parameters()) == 4_984_320
    lifted = build_classifier(
        "cifarvgg_att", list("ab"), head="ltpa", head_options={"levels": 3, "project": "l_up"}
    )
    with torch.no_grad():
        seen = lifted.eval().network.look(torch.randn(1, 3, 32, 32))
    assert [context.shape[1] for context in seen.contexts.values()] == [512, 512, 512]


@pytest.mark.slow
def test_sizes_at_80_pixels_and_of_the_plain_network():
    classifier = build_classifier("cifarvgg_att", list("ab"), head="ltpa", size=80).eval()
    with torch.no_grad():
        seen = classifier.network.look(torch.randn(1, 3, 80, 80))
    assert [tuple(maps.shape[1:]) for maps in seen.attention.values()] == [(16, 16), (8, 8)]
    plain = build_classifier("cifarvgg", list("ab")).eval()
    with torch.no_grad():
        assert plain.network.features(torch.randn(1, 3, 32, 32)).shape == (1, 512, 2, 2)


def test_averaged_gradients_at_a_fork():
    found, x = network(), images()
    gradients = {}
    for merge in ("sum", "mean"):
        found.merge = merge
        first = found.trunk[0](x).detach().requires_grad_()
        seen = [forked(first, 2, merge)]
        onward = found.trunk[1](forked(first, 2, merge))
        seen.append(forked(onward, 2, merge))
        found.attend(seen, found.branch(forked(onward, 2, merge))).logits.square().sum().backward()
        gradients[merge] = first.grad
    # one edge at a time: attention on the first level, and everything that comes after it
    first = found.trunk[0](x).detach()
    found.merge = "mean"
    edges = []
    for edge in range(2):
        leaf = first.clone().requires_grad_()
        onward = found.trunk[1](leaf if edge else first)
        seen = [first if edge else leaf, forked(onward, 2, "mean")]
        found.attend(seen, found.branch(forked(onward, 2, "mean"))).logits.square().sum().backward()
        edges.append(leaf.grad)
    torch.testing.assert_close(gradients["mean"], 0.5 * (edges[0] + edges[1]))
    assert not torch.allclose(gradients["mean"], gradients["sum"])


def test_summed_gradients_are_those_of_autograd():
    found, x = network(compat="dp"), images()
    found(x).square().sum().backward()
    expected = found.trunk[0][0].weight.grad.clone()
    step, weight = 1e-6, found.trunk[0][0].weight
    probe = torch.randn(weight.shape, dtype=weight.dtype)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * probe)
            values.append(float(found(x).square().sum()))
            weight.sub_(sign * step * probe)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float((expected * probe).sum()), rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_combinations_of_levels(multilabel):
    x = images()
    for combine in ("indep", "indep_poe"):
        found = network(combine=combine, multilabel=multilabel)
        seen = found.look(x)
        described = seen.described.split(list(WIDTHS), 1)
        each = torch.stack([fc(part) for fc, part in zip(found.fc, described, strict=True)])
        if multilabel:
            wanted = each.sigmoid().mean(0) if combine == "indep" else each.sum(0).sigmoid()
            torch.testing.assert_close(seen.logits.sigmoid(), wanted)
        else:
            wanted = each.softmax(2).mean(0) if combine == "indep" else each.log_softmax(2).sum(0).softmax(1)
            torch.testing.assert_close(seen.logits.softmax(1), wanted)


def test_with_one_level_all_combinations_are_one():
    logits = [network(widths=(4,), combine=c)(images()).softmax(1) for c in ("concat", "indep", "indep_poe")]
    torch.testing.assert_close(logits[0], logits[1])
    torch.testing.assert_close(logits[0], logits[2])


@pytest.mark.parametrize(("project", "widths"), [("g_down", [4, 6]), ("l_up", [6, 6])])
def test_projections(project, widths):
    seen = network(project=project).look(images())
    assert [context.shape[1] for context in seen.contexts.values()] == widths


def test_an_image_alone_and_in_a_batch():
    found, x = network(compat="dp"), images()
    whole = found.look(x)
    for row in range(3):
        alone = found.look(x[row : row + 1])
        torch.testing.assert_close(alone.logits[0], whole.logits[row])
        torch.testing.assert_close(alone.attention["level1"][0], whole.attention["level1"][row])


def test_read_outs_of_levels():
    torch.manual_seed(0)
    classifier = build_classifier("smallnet", list("abc"), head="ltpa", size=48).eval()
    names = [f"attention:read={read}" for read in ("level1", "level2", "product", "mean")]
    found = attention_maps(classifier, torch.randn(2, 3, 48, 48), [[0, 1], [2]], ["attention", *names]).maps
    assert torch.equal(found["attention"], found["attention:read=product"])
    low = nn.functional.interpolate(found["attention:read=level2"][:, None], (12, 12), mode="bilinear")[:, 0]
    geometric = (found["attention:read=level1"] * low).sqrt()
    torch.testing.assert_close(found["attention"], geometric / geometric.sum((1, 2), keepdim=True))
    assert found["attention:read=mean"].amax() <= 1


def test_convolutions_start_as_published():
    torch.manual_seed(0)
    found = LTPANetwork([nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)], (64, 64), 3, LTPA())
    for convolution, outputs in ((found.branch.body[1], 64 * 9), (found.levels[0].u, 1)):
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.3)
        assert not convolution.bias.any()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_small_patterns_and_attends_to_them(seed):
    generator = torch.Generator().manual_seed(0)
    x, y = 0.3 * torch.randn(64, 3, 32, 32, generator=generator), torch.arange(64) % 2
    inside = torch.zeros(64, 32, 32, dtype=torch.bool)
    for row in range(64):
        top, left = torch.randint(2, 24, (2,), generator=generator).tolist()
        patch = torch.zeros(6, 6)
        patch[::2] = 3.0
        x[row, :, top : top + 6, left : left + 6] = patch if y[row] else patch.T
        inside[row, top : top + 6, left : left + 6] = True
    torch.manual_seed(seed)
    trunk = CifarVGG(2, divide=8).features
    names = [name for name, _ in trunk.named_children()]
    place = names.index("conv10") + 1
    found = LTPANetwork([trunk[:place], trunk[place:]], (64, 64), 2, LTPA(drop=0.0))
    for module in found.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimiser = torch.optim.Adam(found.parameters(), 3e-3)
    for _ in range(12):
        optimiser.zero_grad()
        nn.functional.cross_entropy(found.train()(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        found.train()(x)
        seen = found.eval().look(x)
    assert (seen.logits.argmax(1) == y).float().mean() >= 0.95
    mass = []
    for maps in seen.attention.values():
        shares = nn.functional.adaptive_avg_pool2d(inside[:, None].float(), maps.shape[1:])[:, 0]
        mass.append(float((maps * shares).sum((1, 2)).mean()))
    assert max(mass) > 3 * float(inside.float().mean())
