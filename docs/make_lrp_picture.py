"""Draws docs/images/lrp-readouts.png: one image, read out in the ways of `lrp`, before and after ISNet.

python docs/make_lrp_picture.py runs/background-bias/seed0/plain/ft.pt runs/background-bias/seed0/isnet/ft.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import wsod
from wsod.maps import attention_maps
from wsod.models import load_classifier

DATA = "shapes:simple=true,size=48,bias=1.0,cue=deceive,count=200"
INDEX = 11
READOUTS = {
    "sum over colours": "lrp:first=zb",
    "relu=true": "lrp:first=zb,relu=true",
    "reduce=sum: absolute": "lrp:first=zb,reduce=sum",
    "reduce=max": "lrp:first=zb,reduce=max",
    "relu=true, smooth=0.05": "lrp:first=zb,relu=true,smooth=0.05",
    "epsilon-plus, first=flat": "lrp:rule=epsilon-plus,first=flat,relu=true",
}


def main(checkpoints: list[str]) -> None:
    dataset = wsod.open_dataset(DATA, "test")
    image, label = dataset.image(INDEX), int(dataset[INDEX].labels[0])
    figure = Figure(
        figsize=(1.6 * (1 + len(READOUTS)), 1.9 * len(checkpoints)), dpi=110, layout="constrained"
    )
    axes = figure.subplots(len(checkpoints), 1 + len(READOUTS), squeeze=False)
    for row, checkpoint in enumerate(checkpoints):
        classifier = load_classifier(checkpoint, device="cpu")
        pixels = classifier.preprocess(image)[0][None]
        maps = attention_maps(classifier, pixels, [label], list(READOUTS.values())).maps
        said = classifier.classes[int(classifier(pixels).detach().argmax())]
        axes[row, 0].imshow(np.asarray(image.resize(pixels.shape[:1:-1])))
        axes[row, 0].set_ylabel(Path(checkpoint).parent.name)
        axes[row, 0].set_xlabel(f"{classifier.classes[label]}, said: {said}", fontsize=8)
        for axis, (title, name) in zip(axes[row, 1:], READOUTS.items(), strict=True):
            values = maps[name][0].numpy()
            limit = float(np.quantile(np.abs(values), 0.995)) or 1.0
            signed = values.min() < 0
            axis.imshow(
                values,
                cmap="RdBu_r" if signed else "inferno",
                vmin=-limit if signed else 0.0,
                vmax=limit,
            )
            if row == 0:
                axis.set_title(title, fontsize=8)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(Path(__file__).parent / "images" / "lrp-readouts.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
