"""Recipes: all of them bind, what is said beside them wins, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from atcon.build import set_mode
from atcon.config import config_from_tables, load_config, recipes
from atcon.stages import StageConfig, TermConfig
from wsod.config import dump_toml, read_toml
from wsod.errors import ConfigError
from wsod.models import build_classifier


@pytest.mark.parametrize("name", sorted(recipes()))
def test_recipes_bind_and_survive_being_written(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.recipe == name
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config))
    assert config_from_tables(read_toml(file), {}, file) == config


@pytest.mark.parametrize("name", sorted(recipes()))
def test_options_of_recipes_are_those_of_their_objectives(name: str) -> None:
    from atcon.objectives import OBJECTIVES
    from wsod.config import bind

    for stage in load_config(name).stages.values():
        for key, term in stage.objectives.items():
            assert bind(OBJECTIVES[key], term.options, name).name == key


def test_the_parity_recipe_is_the_public_codes_setting() -> None:
    stage = load_config("parity").stages["atcon"]
    assert stage.objectives["atcon"].options == {
        "mask_scale": "raw",
        "mask_slope": 40.0,
        "similarity": "pearson",
    }
    assert (stage.lr, stage.batch, stage.batch_norm) == (2e-6, 4, "frozen")


def test_what_is_said_wins() -> None:
    said = load_config(
        "quickstart",
        settings=[
            "train.lr=0.5",
            "stages.atcon.lr=0.25",
            "data.flip=0.0",
            "stages.atcon.objectives.atcon.weight=2",
        ],
        overrides={"model": {"arch": "resnet18"}, "data": {"flip": 1.0, "limit": 7}},
    )
    assert (said.stages["start"].lr, said.stages["atcon"].lr) == (0.5, 0.25)
    assert (said.data.flip, said.data.limit, said.model.arch) == (0.0, 7, "resnet18")
    assert said.stages["atcon"].objectives["atcon"].weight == 2.0
    assert said.stages["atcon"].objectives["atcon"].options["mask_scale"] == "std"


def test_objectives_alone_make_one_stage() -> None:
    config = load_config(objectives=["supervised", "atcon"], settings=["train.batch_norm=mixed"])
    assert list(config.stages) == ["finetune"]
    assert list(config.stages["finetune"].objectives) == ["supervised", "atcon"]


def test_objectives_replace_those_of_a_recipe_of_one_stage() -> None:
    config = load_config("atcon", objectives=["atcon", "supervised"])
    terms = config.stages["atcon"].objectives
    assert list(terms) == ["atcon", "supervised"]
    assert terms["atcon"].options["mask_slope"] == 40.0
    with pytest.raises(ConfigError, match="a recipe of one stage"):
        load_config("quickstart", objectives=["atcon"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stages.atcn.lr=1"], "Did you mean 'atcon'"),
        (["train.lrr=1"], "Did you mean 'lr'"),
        (["train.batch=0"], "at least 1"),
        (["train.schedule=linear"], "'constant', 'cosine'"),
        (["data.flip=2"], r"a fraction in \[0, 1\]"),
        (["data.val=train"], "another split"),
        (["train.lr=fast"], "type float"),
        (["stages.atcon=3"], "a table"),
        (["stages.atcon.objectives.atcon.ramp=[5, 1]"], "0 <= a < b"),
        (["seed"], "key=value"),
    ],
)
def test_wrong_settings_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", settings=settings)


def test_unknown_recipe_and_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quickstart'"):
        load_config("quickstrat")
    (tmp_path / "r.toml").write_text("stages = [")
    with pytest.raises(ConfigError, match=r"r\.toml: expected a readable TOML"):
        load_config(tmp_path / "r.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ConfigError, match="stages"):
        load_config(tmp_path / "empty.toml")


@pytest.mark.parametrize(("head", "trained"), [("linear", set()), ("lfi", {"attention"})])
def test_batch_norm_of_the_trunk_alone_may_be_frozen(head: str, trained: set[str]) -> None:
    classifier = build_classifier("smallnet", list("ab"), head=head, size=32)
    set_mode(classifier, StageConfig({"supervised": TermConfig()}, batch_norm="trunk"), frozenset())
    norms = {name: m for name, m in classifier.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name.split(".")[0] for name, module in norms.items() if module.training} == trained
    assert classifier.training
    assert any(not module.training for module in norms.values())
