"""``make dashboard-picture``: the README's picture of the dashboard, as headless Chromium draws it.

It is not part of ``make figures``: its bytes depend on the browser and on its fonts.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import ViewportSize, sync_playwright

from docs.blocks import PLOTS, QUICK, RESULTS
from study.dashboard.document import export
from study.errors import StudyError

FLAGS = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
VIEW = "tab=layers&step=0&layer=model"
"""The choices in the address: the gradient norm at step 0, which the verdicts are about."""


def main() -> None:
    """Export the page of the quick study, open it and save what it shows."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise StudyError("no chromium on PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "dashboard.html"
        export([RESULTS / QUICK], page_file)
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport=ViewportSize(width=1600, height=1000))
        page.goto(f"{page_file.as_uri()}#{VIEW}")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        page.screenshot(path=PLOTS / "dashboard.png")
        chromium.close()
    print(PLOTS / "dashboard.png", file=sys.stderr)


if __name__ == "__main__":
    main()
