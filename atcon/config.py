"""What a fine-tuning run is made of: data, model, and stages of weighted objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from atcon.stages import StageConfig, TermConfig, require
from wsod.config import bind, merge, parse_settings, read_toml
from wsod.errors import ConfigError
from wsod.registry import nearest

__all__ = [
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "StageConfig",
    "TermConfig",
    "config_from_tables",
    "load_config",
    "recipes",
]


@dataclass(frozen=True)
class DataConfig:
    """Which images are trained on and judged on.

    Args:
        spec: dataset, as `wsod data` names it.
        train: split to train on.
        val: split to evaluate and select on; with the same name as `train`, `val_images` of its images are
            set apart.
        val_images: how many images to evaluate on; 0 = all of `val` (then it must be another split).
        limit: the first n images of each only; 0 = all.
        per_class: a small training set of at most this many images a class; 0 = no subset.
        balanced: with `per_class`: only images of exactly one class.
        subset: a saved index list (`subset.json` of another run) to train and evaluate on.
        subset_seed: of `per_class` and of `val_images`.
        difficult: objects marked difficult make no label and an image with nothing else is left out
            (`drop`); make labels as any other (`keep`); make no label, and the image stays, with no
            positive class (`parity`, as the public ATCON code has it).
        unlabelled: images of objectives with `pool = "unlabelled"`: the `same` as the labelled ones, or the
            `rest` of the training split that `per_class` or `limit` left over.
        flip: probability of a horizontal flip; digits (SVHN) are never flipped.
        crop: smallest area of a random resized crop, as a fraction; 0 = no crop.
        jitter: strength of random brightness, contrast and saturation changes.
        workers: processes that load images; 0 = the training process itself; None = that on a CPU, up to
            8 on a GPU.
    """

    spec: str = "shapes"
    train: str = "train"
    val: str = "val"
    val_images: int = 0
    limit: int = 0
    per_class: int = 0
    balanced: bool = False
    subset: Path | None = None
    subset_seed: int = 0
    difficult: Literal["drop", "keep", "parity"] = "drop"
    unlabelled: Literal["same", "rest"] = "same"
    flip: float = 0.5
    crop: float = 0.0
    jitter: float = 0.0
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("val_images", "limit", "per_class", "subset_seed"):
            require(getattr(self, name) >= 0, f"data: {name}", "at least 0", getattr(self, name))
        require(self.workers is None or self.workers >= 0, "data: workers", "at least 0", self.workers)
        for name in ("flip", "crop", "jitter"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"data: {name}", "a fraction in [0, 1]", value)
        if self.train == self.val and not self.val_images and self.subset is None:
            raise ConfigError(
                "data: val",
                f"another split than {self.train!r}",
                "the same",
                "Or set val_images, to set apart that many of its images.",
            )


@dataclass(frozen=True)
class ModelConfig:
    """The classifier to train.

    Args:
        arch: architecture; empty = that of an `ft.pt` given as `weights`, else smallnet.
        weights: `none` (random), `default` (the architecture's published ones), or a file: a checkpoint of
            ours (architecture, classes and preprocessing come from it) or a plain state dict.
        head: classification head; empty = that of an `ft.pt` given as `weights`, else linear. A head that the
            `ft.pt` has not is put on its trunk.
        head_options: of the head.
        blocks: what the trunk's features pass through, by name, with options.
        size: side of the input image; 0 = the architecture's.
        target_layer: module path of the layer attention is taken from; empty = the architecture's.
    """

    arch: str = ""
    weights: str = "none"
    head: str = ""
    head_options: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0
    target_layer: str = ""


@dataclass(frozen=True)
class FinetuneConfig:
    """A whole run.

    Args:
        stages: the stages by name, in order; each starts from the weights the one before it selected.
        seed: of initialisation, order of images, augmentation and draws.
        recipe: the name of what this was made from, for the record.
        tensorboard: also log to `DIR/tensorboard`; the package tensorboard has to be installed.
    """

    stages: dict[str, StageConfig]
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    seed: int = 0
    recipe: str = ""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require(bool(self.stages), "stages", "at least one", "none")
        require(0 <= self.seed < 2**32, "seed", "0 to 2^32 - 1", self.seed)


def recipes() -> dict[str, Path]:
    """The packaged recipes: file by name."""
    folder = Path(str(files("atcon"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_config(
    recipe: str | Path | None = None,
    *,
    objectives: Iterable[str] = (),
    settings: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> FinetuneConfig:
    """The run a recipe and what was said beside it describe.

    A recipe's `[train]` table holds what all its stages share; a stage's own table wins over it. What is
    said beside the recipe wins over both: `train.lr=…` for every stage, `stages.NAME.lr=…` for one.

    Args:
        recipe: name of a packaged recipe, or a TOML file; None = `quickstart`, or with `objectives` one
            stage of them.
        objectives: objectives of a single stage, instead of the recipe's.
        settings: `key=value` options.
        overrides: tables that win over the recipe; `settings` win over them.

    Raises:
        ConfigError: for an unknown recipe, key or value.
    """
    names = tuple(objectives)
    where, table = _recipe(recipe, bool(names))
    said = merge(overrides or {}, parse_settings(settings))
    if names:
        stages = table.get("stages", {})
        if len(stages) > 1:
            raise ConfigError("--objective", "a recipe of one stage", f"stages {', '.join(stages)}")
        stage, body = next(iter(stages.items())) if stages else ("finetune", {})
        old = body.get("objectives", {})
        table["stages"] = {stage: {**body, "objectives": {name: old.get(name, {}) for name in names}}}
    return config_from_tables(table, said, where)


def config_from_tables(table: Mapping[str, Any], said: Mapping[str, Any], where: object) -> FinetuneConfig:
    """Bind recipe tables and the tables that win over them."""
    said, table = dict(said), dict(table)
    for source, tables in (("--set stages", said), (f"{where}: stages", table)):
        if not isinstance(tables.get("stages", {}), Mapping):
            raise ConfigError(source, "a table", repr(tables["stages"]))
    shared, forced = table.pop("train", {}), said.pop("train", {})
    for name, body in said.get("stages", {}).items():
        if not isinstance(body, Mapping):
            raise ConfigError(f"stages.{name}", "a table", repr(body))
    unknown = [name for name in said.get("stages", {}) if name not in table.get("stages", {})]
    if unknown:
        raise ConfigError(
            f"stages.{unknown[0]}",
            "a stage of the recipe",
            f"{unknown[0]!r}",
            nearest(unknown[0], table.get("stages", {})),
        )
    stages = {}
    for name, body in table.get("stages", {}).items():
        if not isinstance(body, Mapping):
            raise ConfigError(f"{where}: stages.{name}", "a table", repr(body))
        body = merge(merge(merge(shared, body), forced), said.get("stages", {}).get(name, {}))
        terms = body.get("objectives", {})
        if not isinstance(terms, Mapping):
            raise ConfigError(f"{where}: stages.{name}.objectives", "a table an objective", repr(terms))
        stages[name] = {**body, "objectives": {key: _term(term) for key, term in terms.items()}}
    whole = {**merge(table, said), "stages": stages}
    whole.setdefault("recipe", Path(str(where)).stem)
    return bind(FinetuneConfig, whole, where)


def _term(term: Any) -> Any:
    """Options written beside weight, ramp, share and pool, gathered."""
    if not isinstance(term, Mapping):
        return term
    own = ("weight", "ramp", "share", "pool", "options")
    beside = {key: value for key, value in term.items() if key not in own}
    return {
        **{key: value for key, value in term.items() if key in own},
        # a resolved config.toml has them gathered already
        "options": merge(term.get("options", {}), beside),
    }


def _recipe(recipe: str | Path | None, objectives_given: bool) -> tuple[object, dict[str, Any]]:
    if recipe is None and objectives_given:
        return "objectives", {}
    known = recipes()
    name = str(recipe or "quickstart")
    if name in known:
        return name, read_toml(known[name])
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path, read_toml(path)
    raise ConfigError("--recipe", "a packaged recipe or a TOML file", repr(name), nearest(name, known))
