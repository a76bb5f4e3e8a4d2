"""The slow twin of every map method, by name."""

from __future__ import annotations

from tests.maps.twins import TWINS as SINGLE
from tests.maps.twins_graph import GRAPH_TWINS
from tests.maps.twins_masked import MASKED_TWINS

__all__ = ["TWINS", "UNTWINNED"]

TWINS = {**SINGLE, **MASKED_TWINS, **GRAPH_TWINS}
# what a head computed is compared with its equations in tests/models, head by head
UNTWINNED = {"attention"}
