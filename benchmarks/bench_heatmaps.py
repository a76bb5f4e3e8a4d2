"""Boxes and scores of a heatmap at one threshold: `heatmap_to_boxes` against scikit-image's regions.

Both label the 8-connected components of the mask, and give each one's box and largest value; the results are
compared before anything is timed. The floor is labelling alone (scipy).

    python benchmarks/bench_heatmaps.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import numpy as np
from measure import alternate, options, report, row
from scipy import ndimage
from skimage.measure import label, regionprops

from wsod.boxes import heatmap_to_boxes

MAPS, THRESHOLD = 5, 0.5


def peer(heatmap: np.ndarray) -> tuple[list[list[float]], list[float]]:
    scaled = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    found = regionprops(label(heatmap > THRESHOLD * heatmap.max(), connectivity=2), scaled)
    found.sort(key=lambda region: (-region.intensity_max, -region.area))
    boxes = [[region.bbox[1], region.bbox[0], region.bbox[3], region.bbox[2]] for region in found]
    return boxes, [region.intensity_max for region in found]


def main() -> None:
    given, rows = options(__doc__), []
    for side, sigma in ((224, 20), (224, 5), (1000, 50)):
        rng = np.random.default_rng(side)
        maps = [ndimage.gaussian_filter(rng.random((side, side)), sigma) for _ in range(MAPS)]
        maps = [values - values.min() for values in maps]
        for values in maps:
            boxes, scores = heatmap_to_boxes(values, THRESHOLD)
            wanted, best = peer(values)
            np.testing.assert_array_equal(boxes, wanted)
            np.testing.assert_array_equal(scores, best)
        seconds = alternate(
            {
                "ours": lambda maps=maps: [heatmap_to_boxes(values, THRESHOLD) for values in maps],
                "peer": lambda maps=maps: [peer(values) for values in maps],
                "floor": lambda maps=maps: [
                    ndimage.label(values > THRESHOLD * values.max(), np.ones((3, 3))) for values in maps
                ],
            },
            given.rounds,
        )
        count = np.mean([len(heatmap_to_boxes(values, THRESHOLD)[0]) for values in maps])
        name = f"heatmap of {side}x{side}, {count:.0f} boxes"
        rows.append(row(name, "scikit-image regionprops", seconds, MAPS))
    report(rows, given.json)


if __name__ == "__main__":
    main()
