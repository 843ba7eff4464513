"""Draw the picture in docs/app.md: the page in a headless Chromium, with an image ranked and a label found.

python examples/picture_of_app.py runs/demo/version_0 docs/images/app.png

It needs `pip install 'ovml[app]' playwright` and Chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ovml.data.synthetic.scenes import LABELS, draw_scene

SCENE = 3
"""Number of the test scene that is ranked; the page offers the first six."""


def main(model: str, out: str) -> None:
    scenes = [draw_scene(0, "test", i) for i in range(6)]
    names = [[LABELS[i] for i in scene.label_ids if len(LABELS[i].split()) == 2][:2] for scene in scenes]
    typed = dict.fromkeys(name for pair in names for name in pair)
    command = [sys.executable, "-m", "ovml", "app", "--model", model, "--labels", ",".join(typed)]
    with subprocess.Popen([*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, text=True) as server:
        try:
            found = re.match(r"ovml: (http://\S+)", server.stdout.readline() if server.stdout else "")
            if found is None:
                sys.exit("the page did not start")
            picture = photograph(found[1])
        finally:
            server.send_signal(signal.SIGINT)
    aside = Path(out).with_suffix(".part.png")
    picture.convert("RGB").save(aside, optimize=True)
    aside.rename(out)


def photograph(url: str) -> Image.Image:
    """The page after a click on a scene and on its first label."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(url)
        page.locator(".ovml-tile").nth(5).locator(".ovml-tag").first.wait_for()
        page.locator(".ovml-tile").nth(SCENE).click()
        page.locator(".ovml-bar").first.click()
        page.get_by_alt_text(re.compile("^Heat map")).wait_for()
        page.locator(".ovml-tile").nth(5).locator(".ovml-tag").first.wait_for()
        page.mouse.move(0, 0)
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True, animations="disabled")))
        browser.close()
    return picture


if __name__ == "__main__":
    main(*sys.argv[1:])
