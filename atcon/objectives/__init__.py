"""The terms a loss can be made of. Adding one: a file here and a line below."""

from __future__ import annotations

from atcon.objectives.base import Objective
from atcon.objectives.cam_loss import CamLoss, cam_loss
from atcon.objectives.consistency import Consistency, consistency_loss
from atcon.objectives.gain import Gain, gain_loss
from atcon.objectives.isnet import ISNet, isnet_loss
from atcon.objectives.layer_attention import LayerAttention, layer_attention_loss
from atcon.objectives.likelihood import Likelihood
from atcon.objectives.rrr import RRR, rrr_loss
from atcon.objectives.supervised import Supervised, supervised_loss
from wsod.registry import Registry

__all__ = [
    "OBJECTIVES",
    "Objective",
    "cam_loss",
    "consistency_loss",
    "gain_loss",
    "isnet_loss",
    "layer_attention_loss",
    "rrr_loss",
    "supervised_loss",
]

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    {
        entry.name: entry
        for entry in (Supervised, Consistency, LayerAttention, ISNet, RRR, Gain, CamLoss, Likelihood)
    },
)
