"""docs/maps.md: a line a map method from the registry, and their picture.

python docs/make_maps_page.py PHOTO WEIGHTS.safetensors [--page-only]

WEIGHTS is an ImageNet state dict of torchvision's mobilenet_v2. Two pictures: methods of one pass, and
methods of many (some minutes). Methods for transformers, and those that need a fit or a head of their own,
are left out: no weights for them are at hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from wsod.errors import WsodError
from wsod.maps import METHODS, MapMethod
from wsod.report.contact import Tile, contact_sheet, maps_of_image

DOCS = Path(__file__).parent
# the dearest need decides
COSTS = {
    "forwards": "many forward passes",
    "hessian": "two backward passes",
    "relevance": "a backward pass, by rules",
    "input_gradient": "a backward pass to the pixels",
    "biases": "a backward pass to the pixels",
    "attention_gradients": "a backward pass through the blocks",
    "gradient": "a backward pass through what follows the target layer",
    "attentions": "the forward pass",
    "class_weights": "the forward pass",
    "image": "no network",
    "nothing": "no network",
}
NETWORK: dict[str, Any] = {"arch": "mobilenet_v2", "size": 225, "device": "cpu"}
NOT_DRAWN = {"attentions", "attention_gradients"}
SLOW = {"forwards", "hessian"}
# with fewer samples than their defaults
FEWER = {"sscam": "sscam:samples=2", "iscam": "iscam:steps=2", "rise": "rise:masks=1000"}


def cost(method: MapMethod) -> str:
    """What a map costs beyond the forward pass that all methods of a batch share."""
    return next((text for need, text in COSTS.items() if need in method.needs), "the forward pass")


def page() -> str:
    """The page's text."""
    rows = [
        "| method | equation | cost | one a | supervision | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, method in METHODS.items():
        cells = (
            f"`{name}`",
            method.summary,
            cost(method),
            "class" if method.class_specific else "image",
            ", ".join(method.supervision) or "none",
            method.citation,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return f"""# Map methods

A_d are the features at the target layer, g_d the derivative of the class's score for them, W the
classifier's weights, x the image, s the score. All methods of a batch share one forward pass; *cost* is what
comes on top. *Supervision* is what the method itself uses, beyond that of the classifier. Written by
`docs/make_maps_page.py` from the registry. How to add one: [write-a-method.md](write-a-method.md).

![One photo by the methods that need no further forward passes](images/maps.jpg)

Those that ask the network many times, or differentiate twice, some with fewer samples than their defaults:

![One photo by the methods that need many forward passes](images/maps-many.jpg)

Not drawn: methods for transformers, and those that need a fit or a head of their own.

{chr(10).join(rows)}
"""


def main(photo: Path, weights: Path, picture: bool) -> None:
    """Write the page, and the picture where it is asked for."""
    (DOCS / "maps.md").write_text(page(), "utf-8")
    if picture:
        drawn = [
            name
            for name, method in METHODS.items()
            if NOT_DRAWN.isdisjoint(method.needs) and "transformers" not in method.summary
        ]
        slow = [name for name in drawn if not SLOW.isdisjoint(METHODS[name].needs)]
        _sheet(photo, weights, [name for name in drawn if name not in slow], "maps.jpg")
        _sheet(photo, weights, [FEWER.get(name, name) for name in slow], "maps-many.jpg")


def _sheet(photo: Path, weights: Path, names: list[str], file: str) -> None:
    tiles: list[Tile] = []
    for name in names:
        try:
            image, some = maps_of_image(photo, [name], checkpoint=weights, **NETWORK)
        except WsodError as error:
            print(f"not drawn: {error}")
        else:
            tiles += some
    contact_sheet(image, tiles, columns=6).save(DOCS / "images" / file, quality=75)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--page-only" not in sys.argv)
