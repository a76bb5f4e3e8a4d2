"""The map methods by name. Adding one: a function in a file of this folder and an entry here."""

from __future__ import annotations

from dataclasses import replace

from wsod.config import parse_settings
from wsod.maps.ablation import ablationcam
from wsod.maps.backprop import deconvnet, gradient, guidedbackprop, guidedgradcam, inputxgradient
from wsod.maps.broadcam import broadcam, fit_broadcam
from wsod.maps.cam import cam
from wsod.maps.captum_bridge import captum_method
from wsod.maps.controls import center, center_point, random, sobel, uniform
from wsod.maps.deeplift import deeplift
from wsod.maps.eigencam import eigencam, eigengradcam
from wsod.maps.elementwise import elementgradcam, hirescam, layercam
from wsod.maps.excitation import contrastiveexcitationbackprop, excitationbackprop
from wsod.maps.extremal import extremalperturbation
from wsod.maps.finercam import finercam
from wsod.maps.fitted import Fitted
from wsod.maps.fullgrad import fullgrad
from wsod.maps.gradcam import gradcam, gradcam_plus_plus, xgradcam
from wsod.maps.lcam import fit_lcam, lcam
from wsod.maps.legrad import legrad
from wsod.maps.lrp import lrp
from wsod.maps.method import MapMethod, Need
from wsod.maps.occlusion import occlusion, rise
from wsod.maps.own import attention
from wsod.maps.rollout import gradientrollout, rollout, transmm
from wsod.maps.sampled import integratedgradients, smoothgrad
from wsod.maps.scorecam import iscam, scorecam, sscam
from wsod.maps.shapleycam import shapleycam
from wsod.registry import Registry

__all__ = ["METHODS"]

_LAYER: frozenset[Need] = frozenset({"gradient"})
_HESSIAN: frozenset[Need] = frozenset({"gradient", "hessian"})
_INPUT: frozenset[Need] = frozenset({"input_gradient"})
_BOTH: frozenset[Need] = frozenset({"gradient", "input_gradient"})
_BIASES: frozenset[Need] = frozenset({"input_gradient", "biases"})
_TOKENS: frozenset[Need] = frozenset({"attention_gradients"})
_MANY: frozenset[Need] = frozenset({"forwards"})


class _Methods(Registry[MapMethod]):
    """Map methods by name; `NAME:key=value,…` is one with other options, `captum:NAME` one of captum's."""

    def __getitem__(self, name: str) -> MapMethod:
        base, colon, text = name.partition(":")
        if base == "captum" and colon:
            kind, colon, text = text.partition(":")
            method = captum_method(kind)
        else:
            method = super().__getitem__(base)
        method = method.configured(parse_settings(text.split(",")), base) if text else method
        if method.fit is not None and "fit" in method.options:
            fitted = Fitted.load(str(method.options["fit"]), base)
            options = {**method.options, "fit": fitted, "layers": fitted.layers}
            return replace(method, options=options)
        return method


METHODS: Registry[MapMethod] = _Methods(
    "map method",
    {
        "cam": MapMethod(
            cam, "Σ W[k,d]·A_d, W the classifier's weights", "Zhou et al. 2016", frozenset({"class_weights"})
        ),
        "broadcam": MapMethod(
            broadcam,
            "ReLU Σ V[k,d]·A_d, V a ridge regression of image labels on pooled features (`wsod fit`)",
            "Lin et al. 2023",
            frozenset({"fit"}),
            supervision=("image labels",),
            fit=fit_broadcam,
        ),
        "lcam": MapMethod(
            lcam,
            "Σ W[k,d]·A_d + b, learned so that the image masked by its sigmoid keeps its class (`wsod fit`)",
            "Gkartzonika et al. 2022",
            frozenset({"fit"}),
            fit=fit_lcam,
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
        "eigengradcam": MapMethod(
            eigengradcam, "first principal component of g_d·A_d", "Muhammad & Yeasin 2020", _LAYER
        ),
        "finercam": MapMethod(
            finercam, "Grad-CAM of s_k - γ·mean s_d, d the most similar classes", "Zhang et al. 2025", _LAYER
        ),
        "shapleycam": MapMethod(
            shapleycam, "ReLU Σ mean(g_d - (H·A)_d/2)·A_d, H the Hessian", "Cai 2025", _HESSIAN
        ),
        "ablationcam": MapMethod(
            ablationcam,
            "ReLU Σ w_d·A_d, w_d = relative drop of the score without channel d",
            "Ramaswamy & Desai 2020",
            frozenset({"forwards"}),
            differentiable=False,
        ),
        "scorecam": MapMethod(
            scorecam,
            "ReLU Σ w_d·A_d, w_d = softmax of the score of the image masked by A_d",
            "Wang et al. 2020",
            _MANY,
            differentiable=False,
        ),
        "sscam": MapMethod(
            sscam, "Score-CAM averaged over noisy masks", "Wang et al. 2020 (SS)", _MANY, differentiable=False
        ),
        "iscam": MapMethod(
            iscam,
            "Score-CAM averaged along a path of masks",
            "Naidu et al. 2020",
            _MANY,
            differentiable=False,
        ),
        "occlusion": MapMethod(
            occlusion,
            "mean drop of the score over windows that hide the pixel",
            "Zeiler & Fergus 2014",
            _MANY,
            differentiable=False,
        ),
        "rise": MapMethod(
            rise, "Σ s(x⊙M)·M over random smooth masks M", "Petsiuk et al. 2018", _MANY, differentiable=False
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
        "deeplift": MapMethod(
            deeplift,
            "Σ m·(x - x₀), multipliers m by the rescale rule, x₀ the mean colour",
            "Shrikumar et al. 2017",
            _MANY,
            differentiable=False,
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
        "fullgrad": MapMethod(
            fullgrad,
            "ψ(x·∂s/∂x) + Σ ψ(b·∂s/∂z) over all biases b, ψ = upsample(min-max(|·|))",
            "Srinivas & Fleuret 2019",
            _BIASES,
        ),
        "extremalperturbation": MapMethod(
            extremalperturbation,
            "the smooth mask of area a through which the score is highest",
            "Fong et al. 2019",
            _MANY,
            differentiable=False,
        ),
        "lrp": MapMethod(
            lrp,
            "R_i = Σ_j x_i·w_ij·R_j / (z_j ± ε), layer by layer; further rules as options",
            "Bach et al. 2015",
            frozenset({"input_gradient", "relevance"}),
        ),
        "excitationbackprop": MapMethod(
            excitationbackprop,
            "P_i = Σ_j a_i·w⁺_ij / Σ a·w⁺_j·P_j, from the class to the target layer (MWP)",
            "Zhang et al. 2016",
            frozenset({"probability"}),
        ),
        "contrastiveexcitationbackprop": MapMethod(
            contrastiveexcitationbackprop,
            "excitation backprop minus that of the negated class weights (c-MWP)",
            "Zhang et al. 2016",
            frozenset({"probability"}),
        ),
        "rollout": MapMethod(
            rollout,
            "transformers: class token's row of Π (I + mean over heads of A_l)/2",
            "Abnar & Zuidema 2020",
            frozenset({"attentions"}),
            class_specific=False,
        ),
        "gradientrollout": MapMethod(
            gradientrollout,
            "transformers: rollout of mean over heads of ReLU(∂A⊙A)",
            "Gildenblat 2020",
            _TOKENS,
        ),
        "transmm": MapMethod(
            transmm,
            "transformers: R ← R + mean over heads of ReLU(∂A⊙A)·R",
            "Chefer, Gur & Wolf 2021",
            _TOKENS,
        ),
        "legrad": MapMethod(
            legrad,
            "transformers: ReLU(∂s_l/∂A_l), mean over blocks, heads, tokens",
            "Bousselham et al. 2025",
            frozenset({"attentions", "forwards"}),
            differentiable=False,
        ),
        "attention": MapMethod(
            attention,
            "what the network's own head attends to (lfi, ltpa, abn: one an image; calm: one a class)",
            "the head's",
            class_specific=False,
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
        "uniform": MapMethod(
            uniform,
            "control: one everywhere, which claims nothing",
            "Hedström et al. 2023",
            frozenset({"nothing"}),
            class_specific=False,
            differentiable=False,
        ),
        "random": MapMethod(
            random,
            "control: noise on a grid, the image's own draw",
            "Hedström et al. 2023",
            frozenset({"nothing"}),
            class_specific=False,
            differentiable=False,
        ),
        "sobel": MapMethod(
            sobel,
            "control: edges of the luminance",
            "Hedström et al. 2023",
            frozenset({"image"}),
            class_specific=False,
            differentiable=False,
        ),
    },
)
