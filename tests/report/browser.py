"""Debian's chromium, headless, driven by selenium; or why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [
    name
    for name, found in {
        "chromium": CHROMIUM,
        "chromedriver": DRIVER,
        "selenium": find_spec("selenium"),
    }.items()
    if not found
]
needs_browser = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {', '.join(MISSING)} here: apt-get install chromium chromium-driver; pip install selenium",
)
AXE = find_spec("axe_playwright_python")
#: axe-core, which a package for another browser driver carries
AXE_SCRIPT = Path(AXE.submodule_search_locations[0], "axe.min.js") if AXE else None  # type: ignore[index]
needs_axe = pytest.mark.skipif(
    AXE_SCRIPT is None, reason="no axe-core here: pip install --no-deps axe-playwright-python"
)
# no screen, no network of its own; the sandbox needs a user that is not root
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@contextmanager
def browser(profile: Path, size: tuple[int, int] = (1400, 1000)) -> Iterator[Any]:
    """A browser that keeps its console's messages."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
