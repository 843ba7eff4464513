"""Hooks of the site's build: pages outside the navigation, and the text of CONTRIBUTING.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ABOVE = {
    "ablation.md": "results.md",
    "benchmarks.md": "results.md",
    "calibration.md": "evaluation.md",
    "export.md": "sharing.md",
    "performance.md": "results.md",
    "photographs.md": "results.md",
    "towers.md": "heads.md",
    "training_free.md": "tagging.md",
    "zoo.md": "results.md",
}
"""The page above a page that is not in the navigation; for others it is the `index.md` of their folder."""


def on_nav(nav: Navigation, *, files: Files, **_: Any) -> Navigation:
    """Put pages outside the navigation below another page, for the tabs, the sidebar and the breadcrumbs."""
    pages = {file.src_uri: file.page for file in files.documentation_pages()}
    for name, page in pages.items():
        if page is not None and page not in nav.pages:
            page.parent = pages[ABOVE.get(name, f"{Path(name).parent.as_posix()}/index.md")]
    return nav


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Show CONTRIBUTING.md, whose links start at the root of the repository."""
    if page.file.src_uri == "contributing.md":
        return (Path(config.docs_dir).parent / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    return markdown
