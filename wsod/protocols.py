"""Evaluation protocols: files in eval_configs/ that fix map processing, thresholds, box edges and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsod.config import bind, merge, parse_settings, read_toml
from wsod.errors import ConfigError
from wsod.metrics import METRICS, Metric
from wsod.registry import nearest
from wsod.scoremaps import MapProcessing

__all__ = ["Protocol", "load_protocol", "protocol_names"]


@dataclass(frozen=True)
class Protocol:
    """What is computed from the maps, and how. Data, split and maps are not part of it.

    Args:
        description: one line, shown by `wsod list protocols`.
        reproduces: whose numbers these are, with the source of the definition.
        maps: how raw maps become score maps.
        metrics: options by metric name, in the order they are shown.
        published: numbers others have printed for this protocol; each names its own source.
    """

    description: str
    reproduces: str = ""
    maps: MapProcessing = field(default_factory=MapProcessing)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: tuple[dict[str, Any], ...] = ()
    name: str = ""

    def build(self, classes: int, names: Iterable[str] = ()) -> dict[str, Metric]:
        """The metrics, ready to count. `names` picks some; one not in the protocol gets its defaults."""
        chosen = list(names) or list(self.metrics)
        return {name: self._metric(name, self.metrics.get(name, {}), classes) for name in chosen}

    def _metric(self, name: str, options: Mapping[str, Any], classes: int) -> Metric:
        where = f"protocol {self.name}: metrics.{name}"
        return bind(METRICS[name], {**options, "processing": self.maps, "classes": classes}, where)


def _folder() -> Path:
    installed = Path(__file__).parent / "eval_configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "eval_configs"


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def load_protocol(name: str | Path, settings: Iterable[str] = ()) -> Protocol:
    """A protocol by name, or from a TOML file.

    Args:
        name: one that comes with the package, or the file.
        settings: values in place of the file's, such as `maps.normalise=percentile`.

    Raises:
        ConfigError: for an unknown name, key, metric or option.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in protocol_names():
            raise ConfigError(
                "--config",
                "a protocol's name or a .toml file",
                repr(str(name)),
                nearest(str(name), protocol_names()),
            )
        path = _folder() / f"{name}.toml"
    table = merge({"name": path.stem, **read_toml(path)}, parse_settings(settings))
    protocol = bind(Protocol, table, f"{path} with --set {' '.join(settings)}" if settings else path)
    protocol.build(classes=2)  # a wrong option is found before any work starts
    return protocol
