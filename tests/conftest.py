"""What all tests share: one thread a process (processes run side by side), the place of the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]
_shared = ROOT.parent / "shared"
SHARED: Path | None = _shared if (_shared / "data").is_dir() else None

needs_shared = pytest.mark.skipif(
    SHARED is None, reason="real data and reference vectors (../shared) are not here"
)
