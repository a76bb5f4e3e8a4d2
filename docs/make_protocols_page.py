"""docs/protocols-each.md: a section a protocol, from its file and its metrics' own descriptions.

python docs/make_protocols_page.py
"""

from __future__ import annotations

import inspect
from itertools import takewhile
from pathlib import Path

from wsod.metrics import METRICS
from wsod.protocols import load_protocol, protocol_names

DOCS = Path(__file__).parent
CONFIGS = DOCS.parent / "eval_configs"
# s: score map, t: threshold, B: true boxes, M: the class's pixels, y: true class, ŷ: predicted class
EQUATIONS = {
    "max_box_acc": "max over t of (1/N) Σ 1[IoU(box{s > t}, B) ≥ 0.5]",
    "max_box_acc_v2": "(1/3) Σ over δ = 0.3, 0.5, 0.7 of max over t of (1/N) Σ 1[IoU(box{s > t}, B) ≥ δ]",
    "gt_known_loc": "(1/N) Σ 1[IoU(box{s > t}, B) ≥ 0.5]",
    "top1_loc": "(1/N) Σ 1[ŷ = y] · 1[IoU(box{s > t}, B) ≥ 0.5]",
    "top5_loc": "(1/N) Σ 1[y among the five first] · 1[IoU(box{s > t}, B) ≥ 0.5]",
    "corloc": "(1/C) Σ over c of (1/N_c) Σ 1[IoU(best box of c, B) ≥ 0.5]",
    "corloc_image": "(1/N) Σ 1[IoU(best box, any B) ≥ 0.5]",
    "pointing_game": "(1/C) Σ over c of hits_c / (hits_c + misses_c)",
    "energy_pointing_game": "(1/N) Σ of (Σ of s inside B) / (Σ of s)",
    "mask_iou": "max over t of (1/N) Σ |{s > t} ∩ M| / |{s > t} ∪ M|",
    "jaccard": "(1/N) Σ |{s > t} ∩ M| / |{s > t} ∪ M|, t by Otsu's rule",
    "pxap": "Σ over l of Precision(t_l) · (Recall(t_l) − Recall(t_(l−1)))",
    "miou": "max over t of (1/(C+1)) Σ over c of TP_c / (TP_c + FP_c + FN_c), pixels of all images together",
    "miou_atcon": "(1/N) Σ |{m > 0.5} ∩ B| / |{m > 0.5} ∪ B|, m the stretched map",
    "box_ap": "mean over IoU = 0.50, 0.55 … 0.95 and c of (1/101) Σ over r of max over r' ≥ r of p_c(r')",
    "voc_ap": "(1/C) Σ over c of ∫ max over r' ≥ r of p_c(r') dr (area), or (1/11) Σ over r = 0, 0.1 … 1",
}


def _head(lines: list[str]) -> tuple[str, list[str]]:
    """The comment a file begins with: its text, and the commands in it."""
    comment = [line[1:] for line in takewhile(lambda line: line.startswith("#"), lines)]
    commands = [line.strip() for line in comment if line.startswith("     ")]
    text = [line.strip() for line in comment if not line.startswith("     ")]
    return "\n".join(text).strip(), commands


def _settings(lines: list[str]) -> str:
    """The tables of map processing and metrics, as the file has them."""
    kept, inside = [], False
    for line in lines:
        if line.startswith("["):
            inside = line.startswith(("[maps", "[metrics"))
        if inside and not line.startswith("#"):
            kept.append(line)
    return "\n".join(kept).strip()


def _measures(metric: str) -> str:
    """The metric's equation, and what its description says before its options."""
    text = inspect.getdoc(METRICS[metric]) or ""
    about = " ".join(text.split("\nArgs:")[0].split())
    equation = f"\n    {EQUATIONS[metric]}\n" if metric in EQUATIONS else ""
    return f"`{metric}`: {about}\n{equation}"


def section(name: str) -> str:
    """One protocol."""
    protocol, lines = load_protocol(name), (CONFIGS / f"{name}.toml").read_text("utf-8").splitlines()
    text, commands = _head(lines)
    many = [f"{len(protocol.published)} stated, each with its source; `--published` shows them beside yours."]
    parts = [
        f"## {name}",
        f"{protocol.description[0].upper()}{protocol.description[1:]}.",
        "**Measures.** " + "\n".join(map(_measures, protocol.metrics)),
        "**Settings.** What is not named has the default of `wsod list metrics` and of the map processing.",
        f"```toml\n{_settings(lines)}\n```",
        f"**Source.** {protocol.reproduces or 'Nobody: a choice of this project'}.",
        f"**What it reproduces, and where codes differ.** {text}",
        "**Run.**",
        "```\n" + "\n".join(commands) + "\n```",
        "**Published numbers.** " + (many[0] if protocol.published else "None is stated."),
    ]
    return "\n\n".join(part.rstrip() for part in parts)


def page() -> str:
    """The page's text."""
    head = """# Each protocol

One section a file of [`eval_configs/`](../eval_configs), written by `docs/make_protocols_page.py` from the
file itself and from the metrics' own descriptions. Which are shown to be equal to whom, and where they differ
from the default: [protocols.md](protocols.md). In equations: s the score map, t a threshold, B the class's
true boxes, M its pixels, y the true class, ŷ the predicted one, N cases, C classes."""
    return "\n\n".join([head, *map(section, protocol_names())]) + "\n"


if __name__ == "__main__":
    (DOCS / "protocols-each.md").write_text(page(), "utf-8")
