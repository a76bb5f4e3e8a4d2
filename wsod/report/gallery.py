"""The cases a report shows: which they are, and each one's photo, maps, masks and boxes as small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsod.boxes.iou import iou
from wsod.data import open_dataset
from wsod.data.dataset import Dataset
from wsod.errors import WsodError
from wsod.kept import made_for
from wsod.report.overlays import drawn_processing
from wsod.results import Result, Row, class_names
from wsod.scoremaps import MapProcessing
from wsod.store import MapStore, expand_map_folders, folder_name
from wsod.thresholds import protocol_of
from wsod.types import AttentionMaps, Sample

__all__ = ["Card", "Gallery", "Panel", "ReportRow", "chosen_cases", "gallery", "report_rows"]

Case = tuple[str, str, str, str]  # data, split, image, label
BUDGET = 13_500_000  # bytes of pictures as they are written: the page stays below 15 MB
# (longer side of the photo, of its maps, quality): the first that keeps the budget
LEVELS = ((320, 128, 72), (288, 96, 60), (224, 72, 50), (160, 56, 40), (112, 40, 35))
TRIED = 24  # cards from which the quality is guessed
COLOURS = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
MOST_BOXES = 12
SAMPLED = 200  # cases whose boxes are compared with the truth for the histogram


@dataclass
class ReportRow:
    """A row of a run, where its maps are, and its cases' scores.

    Args:
        name: how the report calls it.
        run: the run's own name.
        result: that run.
        row: its scores.
        store: its maps; None where they were not kept.
        scores: each metric's own score of each case.
    """

    name: str
    run: str
    result: Result
    row: Row
    store: Path | None
    scores: Mapping[Case, Mapping[str, float]]
    _opened: MapStore | None = field(default=None, repr=False)

    @property
    def threshold(self) -> float:
        """Where its masks and boxes are drawn: the threshold of its first swept metric."""
        for score in self.row.scores.values():
            if isinstance(score.get("best_threshold"), float):
                return float(score["best_threshold"])
        return 0.5

    @cached_property
    def processing(self) -> MapProcessing:
        """How its maps become the pictures' score maps."""
        return drawn_processing(protocol_of(self.result).maps)

    def maps(self, sample: Sample, classes: int) -> AttentionMaps:
        """The image's maps; there must be a store."""
        if self._opened is None:
            assert self.store is not None
            self._opened = MapStore(self.store, classes)
        return self._opened.read(sample)


@dataclass
class Panel:
    """One row's map of a case.

    Args:
        row: index of the row.
        values: (metric, score) of this case.
        heat: the map in colours, as a data URI; empty without a map.
        mask: what is below the threshold in black, as a data URI.
        boxes: (x, y, width, height) in pixels of the image, the largest component's first.
        iou: of that first box with the nearest true box; None without either.
    """

    row: int
    values: Sequence[tuple[str, float]]
    heat: str = ""
    mask: str = ""
    boxes: Sequence[tuple[float, ...]] = ()
    iou: float | None = None
    scores: NDArray[np.float64] | None = field(default=None, repr=False)


@dataclass
class Card:
    """A case of the gallery.

    Args:
        case: data, split, image and class.
        panels: a row each.
        size: (height, width) of the image.
        truth: true boxes as (x, y, width, height).
        photo: a data URI; empty where the data set is not here.
        image: that photo.
        level: sizes and quality its pictures are encoded in.
    """

    case: Case
    panels: list[Panel]
    size: tuple[int, int] = (1, 1)
    truth: Sequence[tuple[float, ...]] = ()
    photo: str = ""
    image: Image.Image | None = field(default=None, repr=False)
    level: tuple[int, int, int] = (0, 0, 0)


@dataclass
class Gallery:
    """The cards, what could not be shown and why, and box IoUs of a random sample of cases by row."""

    cards: list[Card]
    warnings: list[str]
    ious: dict[int, list[float]]


def report_rows(results: Mapping[Path, Result], names: Mapping[Path, str]) -> list[ReportRow]:
    """All rows of all runs."""
    rows = []
    for path, result in results.items():
        about = str(result.config["data"]), str(result.config["split"])
        for row in result.rows:
            scores = {(*about, c.image, c.label): c.scores for c in result.cases if c.maps == row.maps}
            name = f"{names[path]}: {row.maps}" if len(results) > 1 else row.maps
            folder = path if path.is_dir() else path.parent
            rows.append(ReportRow(name, names[path], result, row, _store(folder, result, row.maps), scores))
    return rows


def _store(run: Path, result: Result, maps: str) -> Path | None:
    """The folder of a row's maps: kept with the run, or the one they were read from."""
    own = run / "maps" / folder_name(maps)
    if made_for(result, own):
        return own
    places = [Path(maps)]
    places += [folder for name in result.config["maps"] for folder in expand_map_folders(str(name))]
    for place in places:
        if place.is_dir() and place.name == Path(maps).name:
            return place
    return None


def chosen_cases(rows: Sequence[ReportRow], metric: str, count: int, seed: int = 0) -> list[Case]:
    """The worst third, the best third, and as many drawn at random; all of them where they are few.

    Args:
        rows: whose scores are averaged.
        metric: by its case scores.
        count: how many.
        seed: of the draw.
    """
    found: dict[Case, list[float]] = {}
    for row in rows:
        for case, scores in row.scores.items():
            found.setdefault(case, [])
            if metric in scores:
                found[case].append(scores[metric])
    ranked = sorted(found, key=lambda case: (np.mean(found[case]) if found[case] else np.inf, case))
    if len(ranked) <= count:
        return ranked
    third = count // 3
    worst, best, rest = ranked[:third], ranked[-third:] if third else [], ranked[third : len(ranked) - third]
    drawn = np.random.default_rng(seed).choice(len(rest), count - 2 * third, replace=False)
    return [*worst, *(rest[i] for i in sorted(drawn.tolist())), *best]


def gallery(
    rows: Sequence[ReportRow],
    cases: Sequence[Case],
    *,
    data: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> Gallery:
    """Pictures of the cases.

    Args:
        rows: of the report.
        cases: as `chosen_cases` gives them.
        data: where the data set is now, instead of where the runs found it.
        progress: called with (cases done, cases in all).
        seed: of the sample of box IoUs.
    """
    warnings: dict[str, None] = {}
    sets = _datasets(rows, data, warnings)
    cards: list[Card] = []
    for done, case in enumerate(cases, 1):
        cards.append(_card(case, rows, sets.get(case[:2]), warnings))
        if progress:
            progress(done, len(cases))
    _encode(cards)
    known = {
        (panel.row, card.case): panel.iou for card in cards for panel in card.panels if panel.iou is not None
    }
    return Gallery(cards, list(warnings), _sampled_ious(rows, sets, known, seed))


def _datasets(
    rows: Sequence[ReportRow], moved: str | None, warnings: dict[str, None]
) -> dict[tuple[str, str], Dataset]:
    sets = {}
    for row in rows:
        about = str(row.result.config["data"]), str(row.result.config["split"])
        if about in sets:
            continue
        try:
            sets[about] = open_dataset(moved or about[0], about[1])
        except WsodError as error:
            warnings[f"No pictures: {error} Pass --data SPEC where the data set is elsewhere now."] = None
        if row.store is None and about in sets:
            command = str(row.result.provenance.get("command", "wsod evaluate … --out RUN"))
            again = command if "--save-maps" in command.split() else f"{command} --save-maps"
            warnings[f"{row.run}: maps were not kept. To see them: {again}"] = None
    return sets


def _card(case: Case, rows: Sequence[ReportRow], dataset: Dataset | None, warnings: dict[str, None]) -> Card:
    panels = [Panel(i, list(row.scores[case].items())) for i, row in enumerate(rows) if case in row.scores]
    card = Card(case, panels)
    if dataset is None:
        return card
    try:
        index = dataset.ids.index(case[2])
        sample = dataset[index]
        card.size, card.truth = sample.size, _corners(_truth(sample, case[3], dataset))
        if dataset.has_images:
            card.image = dataset.image(index)
            card.image.thumbnail((LEVELS[0][0], LEVELS[0][0]), Image.Resampling.BICUBIC)
    except (WsodError, ValueError) as error:
        warnings[f"{case[2]}: {error}"] = None
        return card
    for panel in panels:
        try:
            _add_map(panel, rows[panel.row], sample, case[3], dataset)
        except WsodError as error:
            warnings[str(error)] = None
    return card


def _truth(sample: Sample, label: str, dataset: Dataset) -> NDArray[np.float64]:
    names = class_names(dataset.classes)
    return sample.boxes_of(names.index(label)) if label in names else np.zeros((0, 4))


def _corners(boxes: NDArray[np.float64]) -> list[tuple[float, ...]]:
    return [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.round(1).tolist()]


def _scores(row: ReportRow, sample: Sample, label: str, dataset: Dataset) -> NDArray[np.float64] | None:
    """(height, width) score map, or None where there is none."""
    names = class_names(dataset.classes)
    if row.store is None or label not in names:
        return None
    maps, wanted = row.maps(sample, len(dataset.classes)), names.index(label)
    labels = maps.labels.tolist()
    return row.processing.score(maps, labels.index(wanted)).scores if wanted in labels else None


def _claims(scores: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """(n, 4) boxes of the largest 8-connected components above the threshold, in that order."""
    labelled, count = ndimage.label(scores > threshold, np.ones((3, 3)))
    areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    places = ndimage.find_objects(labelled)
    largest = [places[i] for i in np.argsort(-areas, kind="stable")[:MOST_BOXES]]
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in largest]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _add_map(panel: Panel, row: ReportRow, sample: Sample, label: str, dataset: Dataset) -> None:
    scores = _scores(row, sample, label, dataset)
    if scores is None:
        return
    claims, truth = _claims(scores, row.threshold), _truth(sample, label, dataset)
    panel.boxes, panel.scores = _corners(claims), scores
    panel.mask = _mask_picture(scores > row.threshold)
    panel.iou = _met(claims, truth)
    side = LEVELS[0][1] / max(scores.shape)
    small = Image.fromarray((255 * scores).round().astype(np.uint8))
    size = max(1, round(scores.shape[1] * side)), max(1, round(scores.shape[0] * side))
    panel.scores = np.asarray(small.resize(size, Image.Resampling.BOX)) / 255.0


def _mask_picture(mask: NDArray[np.bool_]) -> str:
    """What is outside the mask in half-transparent black."""
    side = 192 / max(mask.shape)
    picture = Image.fromarray((~mask).astype(np.uint8) * 255)
    if side < 1:
        size = max(1, round(mask.shape[1] * side)), max(1, round(mask.shape[0] * side))
        picture = picture.resize(size, Image.Resampling.BOX)
    picture = picture.point(lambda value: int(value > 127)).convert("P")
    picture.putpalette([0, 0, 0, 0, 0, 0])
    return _uri(picture, "PNG", bits=1, transparency=bytes([0, 190]))


def _encode(cards: Sequence[Card]) -> None:
    """Photos and maps as WebP, in the best quality that keeps the budget; some cards are tried first."""
    some = cards[:: -(-len(cards) // TRIED)] if cards else []
    first = 0
    while first < len(LEVELS) - 1 and _encoded(some, LEVELS[first]) * len(cards) > BUDGET * len(some):
        first += 1
    for level in LEVELS[first:]:
        if _encoded(cards, level) <= BUDGET:
            return


def _encoded(cards: Sequence[Card], level: tuple[int, int, int]) -> int:
    """Draw the cards' pictures; their bytes."""
    photo, heat, quality = level
    total = 0
    for card in cards:
        if card.image is not None and card.level != level:
            picture = card.image.copy()
            picture.thumbnail((photo, photo), Image.Resampling.BICUBIC)
            card.photo = _uri(picture, "WEBP", quality=quality)
        for panel in card.panels:
            if panel.scores is not None and card.level != level:
                colours = COLOURS[(255 * panel.scores).round().astype(np.uint8)]
                picture = Image.fromarray(colours)
                picture.thumbnail((heat, heat), Image.Resampling.BOX)
                panel.heat = _uri(picture, "WEBP", quality=quality, method=2)
            total += len(panel.heat) + len(panel.mask)
        total += len(card.photo)
        card.level = level
    return total


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _sampled_ious(
    rows: Sequence[ReportRow],
    sets: Mapping[tuple[str, str], Dataset],
    known: Mapping[tuple[int, Case], float],
    seed: int,
) -> dict[int, list[float]]:
    """IoU of the largest component's box with the nearest true box, over cases drawn at random.

    Args:
        rows: of the report.
        sets: data sets by data and split.
        known: that of the cases drawn, by row.
        seed: of the draw.
    """
    found: dict[int, list[float]] = {}
    places: dict[tuple[str, str], dict[str, int]] = {}
    for i, row in enumerate(rows):
        cases = sorted(row.scores)
        if row.store is None or not cases or cases[0][:2] not in sets:
            continue
        dataset = sets[cases[0][:2]]
        of_ids = places.setdefault(cases[0][:2], {image: k for k, image in enumerate(dataset.ids)})
        drawn = np.random.default_rng(seed).permutation(len(cases))[:SAMPLED].tolist()
        values = [
            known[i, cases[k]] if (i, cases[k]) in known else _iou(row, cases[k], dataset, of_ids)
            for k in drawn
        ]
        if any(value is not None for value in values):
            found[i] = [value for value in values if value is not None]
    return found


def _iou(row: ReportRow, case: Case, dataset: Dataset, places: Mapping[str, int]) -> float | None:
    try:
        sample = dataset[places[case[2]]]
        scores, truth = _scores(row, sample, case[3], dataset), _truth(sample, case[3], dataset)
    except (WsodError, KeyError):
        return None  # named where its card is drawn
    return None if scores is None else _met(_claims(scores, row.threshold), truth)


def _met(claims: NDArray[np.float64], truth: NDArray[np.float64]) -> float | None:
    """IoU of the first box with the nearest true one; None without a true one."""
    if not len(truth):
        return None
    return float(iou(claims[:1], truth).max()) if len(claims) else 0.0
