"""Hide-and-Seek and CutMix, and who may learn from mixed images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atcon.build import make_objectives, make_transforms
from atcon.data import Batch
from atcon.objectives.supervised import Supervised
from atcon.stages import StageConfig, TermConfig
from atcon.transforms import TRANSFORMS, CutMix, HideAndSeek
from atcon.transforms.has import hidden_cells
from wsod.errors import ConfigError
from wsod.models import build_classifier


def batch(multilabel: bool = False) -> Batch:
    images = torch.randn(6, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    return Batch(images, F.one_hot(targets).float() if multilabel else targets, tuple(range(6)))


def test_hidden_cells_are_whole_and_as_many_as_said():
    torch.manual_seed(0)
    hidden = hidden_cells((20, 28), 200, 8, 0.3)
    assert hidden.shape == (200, 1, 20, 28)
    cells = hidden[:, :, ::8, ::8]
    assert torch.equal(hidden, cells.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :20, :28])
    assert float(cells.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(hidden[0], hidden[1])


def test_hide_and_seek_leaves_the_rest_and_the_batch():
    torch.manual_seed(0)
    given = batch()
    before = given.images.clone()
    found = HideAndSeek(cell=4)(given)
    kept = found.images != 0
    assert torch.equal(found.images[kept], before[kept])
    assert 0.2 < float(kept.float().mean()) < 0.8
    assert torch.equal(given.images, before)
    assert torch.equal(found.targets, given.targets)
    assert torch.equal(HideAndSeek(rate=0.0)(given).images, before)
    assert not HideAndSeek(rate=1.0)(given).images.any()


def test_cutmix_pastes_one_box_and_counts_its_area():
    torch.manual_seed(3)
    given, seen = batch(), 0
    for _ in range(20):
        found = CutMix()(given)
        foreign = (found.images != given.images).any(1)
        share = 1 - foreign.float().mean((1, 2))
        changed = foreign.flatten(1).any(1)
        torch.testing.assert_close(share[changed], found.share[changed])
        for row in changed.nonzero().flatten().tolist():
            ys, xs = foreign[row].nonzero().unbind(1)
            box = (
                slice(None),
                slice(int(ys.min()), int(ys.max()) + 1),
                slice(int(xs.min()), int(xs.max()) + 1),
            )
            origin = [n for n in range(6) if torch.equal(given.images[n][box], found.images[row][box])]
            assert found.partners[row] == given.targets[origin[0]]
            seen += 1
    assert seen > 50
    assert CutMix(rate=0.0)(given) is given


@pytest.mark.parametrize("multilabel", [False, True])
def test_mixed_images_are_learned_by_share(multilabel):
    torch.manual_seed(0)
    task = "multilabel" if multilabel else "multiclass"
    classifier = build_classifier("smallnet", list("abc"), task=task, size=32).eval()
    mixed = CutMix()(batch(multilabel))
    logits = classifier(mixed.images)
    loss = F.binary_cross_entropy_with_logits if multilabel else F.cross_entropy
    share = mixed.share[0]
    expected = share * loss(logits, mixed.targets) + (1 - share) * loss(logits, mixed.partners)
    torch.testing.assert_close(Supervised()(classifier, mixed, 0)["supervised"], expected)
    # parts of a batch carry their shares with them
    parts = [Supervised()(classifier, part, 0)["supervised"] for part in mixed.parts(2)]
    torch.testing.assert_close(sum(parts) / 2, expected)


def stage(objective: str, transform: str) -> StageConfig:
    return StageConfig({objective: TermConfig()}, batch_norm="frozen", transforms={transform: {}})


def test_objectives_that_read_what_an_image_shows_refuse_mixed_ones():
    classifier = build_classifier("smallnet", list("abc"), size=32)
    offered = {"labels", "masks", "boxes"}
    for objective in ("cam_loss", "gain", "likelihood"):
        with pytest.raises(ConfigError, match="images mixed by cutmix"):
            make_objectives("one", stage(objective, "cutmix"), classifier, offered)
        make_objectives("one", stage(objective, "has"), classifier, offered)
    make_objectives("one", stage("supervised", "cutmix"), classifier, offered)
    make_objectives("one", stage("atcon", "cutmix"), classifier, offered)


def test_options_are_checked():
    with pytest.raises(ConfigError, match="Did you mean 'cutmix'"):
        make_transforms("one", stage("supervised", "cutmx"))
    for wrong in (lambda: HideAndSeek(cell=0), lambda: HideAndSeek(rate=2.0), lambda: CutMix(beta=0.0)):
        with pytest.raises(ConfigError):
            wrong()
    for entry in TRANSFORMS.values():
        assert (entry.__doc__ or "").split("\n")[0].endswith(".") or entry.__doc__
        assert entry.citation
