"""BroadCAM's fit against scikit-learn and a long way round, its file and its command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import Ridge
from torch import Tensor

from tests.maps.networks import CLASSES, batch, make
from wsod.cli import main
from wsod.errors import CheckpointError, ConfigError
from wsod.fitting import fit_method
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.broadcam import Statistics, fit_broadcam, stacked
from wsod.maps.fitted import Fitted
from wsod.models import build_classifier, load_classifier, save_checkpoint

ALPHA = 0.5


def some(n: int = 40, d: int = 12, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    y = (random.random((n, c)) < 0.4).astype(float)
    z = random.random((n, d)) * 3 + y @ random.normal(size=(c, d))
    z[:, 4] = 2.0  # a constant channel
    z[:, 7] *= 1e-4
    return torch.from_numpy(z), torch.from_numpy(y)


def statistics(z: Tensor, y: Tensor) -> Statistics:
    found = Statistics(z.shape[1], y.shape[1])
    for rows in torch.arange(len(z)).split(7):
        found.update(z[rows], y[rows])
    return found


def unit(columns: np.ndarray) -> np.ndarray:
    """Centred columns of unit length, as scikit-learn's former `normalize=True`; constant ones zero."""
    centred = columns - columns.mean(0)
    length = np.linalg.norm(centred, axis=0)
    return np.divide(
        centred, length, out=np.zeros_like(centred), where=length > 1e-6 * np.abs(columns).max(0)
    )


def test_ridge_is_scikit_learns() -> None:
    z, y = some()
    found = statistics(z, y).solve(ALPHA).numpy()
    model = Ridge(alpha=ALPHA).fit(unit(z.numpy()), y.numpy())
    said = model.predict(unit(z.numpy()))
    np.testing.assert_allclose(
        z.numpy() @ found - (z.numpy() @ found).mean(0), said - said.mean(0), atol=1e-9
    )
    assert not found[4].any()


@pytest.mark.parametrize("group", [2, 3])
def test_enhancement_nodes_the_long_way_round(group: int) -> None:
    """Standardise, regress, order, group, scale by minimum and maximum, regress again on everything."""
    z, y = (values.numpy() for values in some(seed=1))
    spread = z.std(0)
    alive = spread > 1e-9
    standard = np.divide(z - z.mean(0), spread, out=np.zeros_like(z), where=alive)
    first = Ridge(alpha=ALPHA).fit(unit(z), y).coef_.T
    length = np.sqrt(len(z)) * spread
    p = np.divide(first, length[:, None], out=np.zeros_like(first), where=alive[:, None])
    count = int((p > 0).sum(0).min()) // group
    assert count >= 1
    theta = []
    for c in range(y.shape[1]):
        order = np.argsort(-p[:, c], kind="stable")
        for m in range(count):
            column = np.zeros(len(p))
            members = order[m * group : (m + 1) * group]
            column[members] = p[members, c] / group
            theta.append(column)
    u = standard @ np.array(theta).T
    h = (u - u.min(0)) / ((u - u.min(0)).max(0) + 1e-8)
    columns = np.hstack([unit(z), unit(h)])
    said = Ridge(alpha=ALPHA).fit(columns, y).predict(columns)
    found = z @ statistics(torch.from_numpy(z), torch.from_numpy(y)).solve(ALPHA, group).numpy()
    np.testing.assert_allclose(found - found.mean(0), said - said.mean(0), atol=1e-7)
    plain = z @ statistics(torch.from_numpy(z), torch.from_numpy(y)).solve(ALPHA).numpy()
    assert not np.allclose(found - found.mean(0), plain - plain.mean(0), atol=1e-3)


def test_statistics_of_parts_add_up() -> None:
    z, y = some()
    parts = statistics(z[:15], y[:15])
    parts.merge(statistics(z[15:], y[15:]))
    torch.testing.assert_close(parts.solve(ALPHA), statistics(z, y).solve(ALPHA), rtol=1e-9, atol=1e-12)
    for wrong in ({"alpha": 0.0}, {"alpha": 1.0, "group": -1}):
        with pytest.raises(ConfigError, match="broadcam"):
            parts.solve(**wrong)
    with pytest.raises(ConfigError, match="images"):
        statistics(z[:1], y[:1]).solve(ALPHA)


def fitted(kind: str = "relu", layers: str = "") -> tuple:
    classifier = make(kind)
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(24, len(CLASSES), generator=generator) < 0.4).float()
    images = batch(24, seed=5) + labels.double()[:, :3, None, None]
    found = fit_broadcam(
        classifier, zip(images.split(8), labels.split(8), strict=True), layers=layers, alpha=0.1
    )
    return classifier, found, images, labels


@pytest.mark.parametrize("layers", ["", "first+third"])
def test_map_is_the_weighted_features_and_its_mean_the_prediction(layers: str, tmp_path: Path) -> None:
    classifier, found, images, _ = fitted(layers=layers)
    path = tmp_path / "fit.pt"
    found.save(path)
    name = f"broadcam:fit={path},relu=false"
    cases = [[0, 3], [2]]
    maps = attention_maps(classifier, images[:2], cases, [name]).maps[name]
    paths = layers.split("+") if layers else [classifier.target_layer]
    tape = Tape(classifier, images[:2], layers=paths)
    features = stacked([tape.features_at(path) for path in paths]).detach()
    weights = found.tensors["weights"].double()
    for values, (row, label) in zip(maps, [(0, 0), (0, 3), (1, 2)], strict=True):
        expected = sum(weights[d, label] * features[row, d] for d in range(features.shape[1]))
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)
        pooled = features[row].mean((1, 2)) @ weights[:, label]
        torch.testing.assert_close(values.mean(), pooled, rtol=1e-6, atol=1e-9)
    rectified = attention_maps(classifier, images[:2], cases, [f"broadcam:fit={path}"])
    torch.testing.assert_close(rectified.maps[f"broadcam:fit={path}"], maps.relu())
    assert METHODS[name].layers == found.layers


def test_a_fit_that_learns() -> None:
    """On images whose colour tells the class the regression says so."""
    _, found, images, labels = fitted()
    tape = Tape(make("relu"), images)
    said = tape.features.mean((2, 3)).detach() @ found.tensors["weights"].double()
    for c in range(3):
        assert np.corrcoef(said[:, c], labels[:, c])[0, 1] > 0.5


def test_gradient_reaches_the_features(tmp_path: Path) -> None:
    classifier, found, images, _ = fitted()
    found.save(tmp_path / "fit.pt")
    method = METHODS[f"broadcam:fit={tmp_path / 'fit.pt'}"]
    for graph in (False, True):
        tape = Tape(classifier, images[:2], layers=method.layers, create_graph=graph)
        maps = method(tape, torch.tensor([[0, 1], [1, 2]]), create_graph=graph)
        assert maps.requires_grad == graph
    maps.sum().backward()
    assert classifier.network.first.weight.grad.any()


def test_refused(tmp_path: Path) -> None:
    classifier, found, images, _ = fitted()
    with pytest.raises(ConfigError, match="wsod fit broadcam"):
        attention_maps(classifier, images[:1], [0], ["broadcam"])
    path = tmp_path / "fit.pt"
    Fitted("broadcam", ("a", "b", "x", "d"), found.layers, found.tensors, found.about).save(path)
    with pytest.raises(CheckpointError, match=r"4 classes, such as 'c' for 'x'"):
        attention_maps(classifier, images[:1], [0], [f"broadcam:fit={path}"])
    Fitted("other", found.classes, found.layers, found.tensors, found.about).save(path)
    with pytest.raises(CheckpointError, match="a fit of broadcam"):
        METHODS[f"broadcam:fit={path}"]
    with pytest.raises(CheckpointError, match="no such file"):
        METHODS[f"broadcam:fit={tmp_path / 'none.pt'}"]
    with pytest.raises(ConfigError, match="images"):
        fit_broadcam(classifier, [])


def test_from_the_command_line(tmp_path: Path) -> None:
    data = "shapes:size=48,count=16"
    torch.manual_seed(0)
    from wsod.data import open_dataset

    classifier = build_classifier("smallnet", open_dataset(data).classes, size=32, task="multilabel")
    save_checkpoint(tmp_path / "ft.pt", classifier, recipe={}, metrics={}, provenance={})
    out = tmp_path / "fit.pt"
    arguments = ["--checkpoint", str(tmp_path / "ft.pt"), "--data", data, "--device", "cpu"]
    run = CliRunner().invoke(main, ["fit", "broadcam", *arguments, "--set", "alpha=2", "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert f"--maps broadcam:fit={out}" in run.output
    found = Fitted.load(out, "broadcam")
    assert found.about["images"] == 16
    assert found.about["alpha"] == 2
    assert found.classes == classifier.classes
    before = load_classifier(tmp_path / "ft.pt", device="cpu")
    assert found.layers == (before.target_layer,)
    run = CliRunner().invoke(
        main,
        [
            "evaluate",
            "--maps",
            f"broadcam:fit={out}",
            *arguments,
            "--limit",
            "4",
            "--metrics",
            "pointing_game",
        ],
    )
    assert run.exit_code == 0, run.output
    for wrong, message in (
        (["fit", "gradcam"], "needs no fit"),
        (["fit", "broadcam", "--set", "aplha=1"], "Did you mean 'alpha'"),
    ):
        run = CliRunner().invoke(main, [*wrong, *arguments, "--out", str(out)])
        assert run.exit_code == 1
        assert message in " ".join(run.output.split())
    with pytest.raises(ConfigError, match="fitted"):
        fit_method("cam", out, checkpoint=tmp_path / "ft.pt")
