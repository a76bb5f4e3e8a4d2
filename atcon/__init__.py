"""Fine-tuning of image classifiers so that their attention gets better."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atcon.config import FinetuneConfig, load_config
    from atcon.objectives import OBJECTIVES, consistency_loss, layer_attention_loss, supervised_loss
    from atcon.train import finetune

# where each public name lives; imported on first use, so that `import atcon` stays free of torch
_HOMES = {
    "OBJECTIVES": "atcon.objectives",
    "FinetuneConfig": "atcon.config",
    "consistency_loss": "atcon.objectives",
    "finetune": "atcon.train",
    "layer_attention_loss": "atcon.objectives",
    "load_config": "atcon.config",
    "supervised_loss": "atcon.objectives",
}

__all__ = [
    "OBJECTIVES",
    "FinetuneConfig",
    "consistency_loss",
    "finetune",
    "layer_attention_loss",
    "load_config",
    "supervised_loss",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'atcon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
