"""The tour's picture of a report: its gallery, light above dark, as a browser shows it.

python docs/make_report_picture.py report.html docs/images/report.jpg

Needs Debian's chromium and chromium-driver, and selenium.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.report.browser import browser


def main(page: Path, target: Path) -> None:
    """Write the picture."""
    views = []
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile), (1240, 820)) as driver:
        driver.get(page.resolve().as_uri())
        for theme in ("light", "dark"):
            driver.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
            driver.execute_script("document.querySelector('#gallery').scrollIntoView()")
            views.append(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    sheet = Image.new("RGB", (views[0].width, sum(view.height for view in views)))
    for i, view in enumerate(views):
        sheet.paste(view, (0, i * views[0].height))
    sheet.save(target, quality=80)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
