"""Sphinx: `nox -s docs` builds these pages with warnings as errors."""

project = "mtk"
author = "the mtk developers"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
