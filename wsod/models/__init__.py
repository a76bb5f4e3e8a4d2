"""Image classifiers: built by name, loaded from files, saved as checkpoints."""

from __future__ import annotations

from wsod.models.architectures import ARCHITECTURES
from wsod.models.build import build_classifier, load_classifier
from wsod.models.checkpoint import read_checkpoint, save_checkpoint
from wsod.models.classifier import Classifier
from wsod.models.heads import HEADS
from wsod.models.preprocess import Preprocess

__all__ = [
    "ARCHITECTURES",
    "HEADS",
    "Classifier",
    "Preprocess",
    "build_classifier",
    "load_classifier",
    "read_checkpoint",
    "save_checkpoint",
]
