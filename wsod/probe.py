"""The classifier, asked about changed images: what the evaluation hands to the metrics that need one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsod.data.dataset import Dataset
from wsod.errors import ModelError
from wsod.memory import ran_out, room_for
from wsod.metrics.probe import Baseline, View
from wsod.pipeline import ALONE, INPUT, class_columns
from wsod.types import AttentionMaps, Sample

if TYPE_CHECKING:
    import torch

    from wsod.models import Classifier

__all__ = ["ClassifierProbe"]

Region = tuple[float, float, float, float]
BLUR = 5 / 224


class ClassifierProbe:
    """Probabilities of views of a data set's images: softmax or sigmoid, as the classifier's task is.

    Args:
        classifier: in evaluation mode, on `device`.
        dataset: of the images; its classes are columns of the answers.
        device: torch device.
        batch_size: views a forward pass.
    """

    def __init__(
        self, classifier: Classifier, dataset: Dataset, *, device: str = "cpu", batch_size: int = 16
    ) -> None:
        self.classifier, self.dataset = classifier, dataset
        self.device, self.batch_size = device, batch_size
        self._columns = class_columns(classifier.classes, dataset.classes or classifier.classes)
        self._index = {image_id: index for index, image_id in enumerate(dataset.ids)}
        self._inputs: dict[str, tuple[torch.Tensor, Region | None]] = {}
        self._baselines: dict[tuple[str, Baseline], torch.Tensor] = {}

    def load(self, sample: Sample, found: Iterable[AttentionMaps] = ()) -> None:
        """Read an image, or take the input that some of its maps were made from.

        Raises:
            DataError: naming the image.
        """
        known = [maps.cache[INPUT] for maps in found if INPUT in maps.cache]
        image_id = sample.image_id
        if known:
            tensor, region = known[0]
        else:
            tensor, region = self.classifier.preprocess(self.dataset.image(self._index[image_id]))
        self._inputs[image_id] = tensor.to(self.device, non_blocking=True), region

    def clear(self) -> None:
        """Forget the images."""
        self._inputs.clear()
        self._baselines.clear()

    def frame(self, image_id: str) -> tuple[tuple[int, int], Region | None]:
        tensor, region = self._inputs[image_id]
        return (tensor.shape[1], tensor.shape[2]), region

    def __call__(self, views: Iterable[View]) -> NDArray[np.float64]:
        answers = [np.zeros((0, len(self._columns)))]
        room = room_for(self.classifier, "views a pass")
        for batch in self._batches(views):
            try:
                answers += room.over(batch, self._answers)
            except Exception as error:
                if not ran_out(error):
                    raise
                where = f"{self.classifier.arch}, image {batch[0].image_id}"
                got = f"out of memory on {self.device}"
                raise ModelError(where, "room for one view", got, ALONE) from None
        return np.concatenate(answers)

    def _answers(self, batch: list[View]) -> NDArray[np.float64]:
        """(M, C) probabilities of views of one input shape."""
        import torch

        with torch.inference_mode():
            logits = self.classifier(self._shown(batch)).double()
            multilabel = self.classifier.task == "multilabel"
            probabilities = logits.sigmoid() if multilabel else logits.softmax(1)
        found: NDArray[np.float64] = probabilities.cpu().numpy()[:, self._columns]
        if not np.isfinite(found).all():
            name = batch[0].image_id
            raise ModelError(f"{self.classifier.arch}, image {name}", "finite logits", "NaN or infinity")
        return found

    def _batches(self, views: Iterable[View]) -> Iterator[list[View]]:
        """Views of one input shape, at most `batch_size`, in order."""
        batch: list[View] = []
        for view in views:
            full = len(batch) == self.batch_size
            if batch and (full or self.frame(view.image_id)[0] != self.frame(batch[0].image_id)[0]):
                yield batch
                batch = []
            batch.append(view)
        if batch:
            yield batch

    def _shown(self, views: list[View]) -> torch.Tensor:
        """(M, 3, H, W) inputs."""
        import torch

        images = torch.stack([self._inputs[view.image_id][0] for view in views])
        baselines = torch.stack([self._baseline(view.image_id, view.baseline) for view in views])
        size = tuple(images.shape[2:])
        weights = [np.ones(size, np.float32) if v.weights is None else v.weights for v in views]
        stacked = torch.from_numpy(np.stack(weights)).to(self.device).to(images.dtype)
        return torch.lerp(baselines, images, stacked[:, None])

    def _baseline(self, image_id: str, kind: Baseline) -> torch.Tensor:
        import torch

        key = image_id, kind
        if key not in self._baselines:
            image = self._inputs[image_id][0]
            if kind == "blur":
                sigma = BLUR * max(image.shape[1:])
                pixels = ndimage.gaussian_filter(image.cpu().numpy(), (0, sigma, sigma), mode="nearest")
                self._baselines[key] = torch.from_numpy(pixels).to(self.device)
            else:
                preprocess = self.classifier.preprocess
                black = torch.tensor(preprocess.mean) / torch.tensor(preprocess.std)
                colour = -black if kind == "black" else torch.zeros(3)
                self._baselines[key] = colour.to(image)[:, None, None].expand_as(image)
        return self._baselines[key]
