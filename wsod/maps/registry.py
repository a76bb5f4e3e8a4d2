"""The map methods by name. Adding one: a function in a file of this folder and an entry here."""

from __future__ import annotations

from wsod.maps.ablation import ablationcam
from wsod.maps.backprop import deconvnet, gradient, guidedbackprop, guidedgradcam, inputxgradient
from wsod.maps.cam import cam
from wsod.maps.controls import center, center_point
from wsod.maps.eigencam import eigencam
from wsod.maps.elementwise import elementgradcam, hirescam, layercam
from wsod.maps.gradcam import gradcam, gradcam_plus_plus, xgradcam
from wsod.maps.method import MapMethod, Need
from wsod.maps.sampled import integratedgradients, smoothgrad
from wsod.registry import Registry

__all__ = ["METHODS"]

_LAYER: frozenset[Need] = frozenset({"gradient"})
_INPUT: frozenset[Need] = frozenset({"input_gradient"})
_BOTH: frozenset[Need] = frozenset({"gradient", "input_gradient"})
_MANY: frozenset[Need] = frozenset({"forwards"})

METHODS: Registry[MapMethod] = Registry(
    "map method",
    {
        "cam": MapMethod(
            cam, "Σ W[k,d]·A_d, W the classifier's weights", "Zhou et al. 2016", frozenset({"class_weights"})
        ),
        "gradcam": MapMethod(gradcam, "ReLU Σ mean(g_d)·A_d", "Selvaraju et al. 2017", _LAYER),
        "gradcam++": MapMethod(
            gradcam_plus_plus,
            "ReLU Σ w_d·A_d, w_d = Σ ReLU(g_d) / (2 + g_d·ΣA_d)",
            "Chattopadhyay et al. 2018",
            _LAYER,
        ),
        "xgradcam": MapMethod(xgradcam, "ReLU Σ w_d·A_d, w_d = Σ g_d·A_d / ΣA_d", "Fu et al. 2020", _LAYER),
        "hirescam": MapMethod(hirescam, "ReLU Σ g_d·A_d, cell by cell", "Draelos & Carin 2020", _LAYER),
        "elementgradcam": MapMethod(
            elementgradcam, "Σ ReLU(g_d·A_d), cell by cell", "Pillai & Pirsiavash 2021", _LAYER
        ),
        "layercam": MapMethod(layercam, "ReLU Σ ReLU(g_d)·A_d, cell by cell", "Jiang et al. 2021", _LAYER),
        "eigencam": MapMethod(
            eigencam,
            "first principal component of the features",
            "Muhammad & Yeasin 2020",
            class_specific=False,
        ),
        "ablationcam": MapMethod(
            ablationcam,
            "ReLU Σ w_d·A_d, w_d = relative drop of the score without channel d",
            "Ramaswamy & Desai 2020",
            frozenset({"forwards"}),
            differentiable=False,
        ),
        "gradient": MapMethod(gradient, "max |∂s/∂x| over RGB", "Simonyan et al. 2014", _INPUT),
        "inputxgradient": MapMethod(inputxgradient, "Σ x·∂s/∂x over RGB", "Shrikumar et al. 2016", _INPUT),
        "smoothgrad": MapMethod(smoothgrad, "|mean ∂s/∂x over noisy copies|", "Smilkov et al. 2017", _MANY),
        "integratedgradients": MapMethod(
            integratedgradients,
            "|x·∫ ∂s/∂x| along the path from the mean colour",
            "Sundararajan et al. 2017",
            _MANY,
        ),
        "guidedbackprop": MapMethod(
            guidedbackprop, "|∂s/∂x|, ReLUs pass back only the positive", "Springenberg et al. 2015", _INPUT
        ),
        "deconvnet": MapMethod(
            deconvnet, "|∂s/∂x|, ReLUs rectify the gradient alone", "Zeiler & Fergus 2014", _INPUT
        ),
        "guidedgradcam": MapMethod(
            guidedgradcam, "upsampled Grad-CAM times guided backpropagation", "Selvaraju et al. 2017", _BOTH
        ),
        "center": MapMethod(
            center,
            "control: a Gaussian at the image's centre",
            "Choe et al. 2020",
            frozenset({"nothing"}),
            class_specific=False,
            differentiable=False,
            point=center_point,
        ),
    },
)
