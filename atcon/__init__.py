"""Fine-tuning of image classifiers so that their attention gets better."""

from __future__ import annotations
