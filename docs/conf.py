"""Sphinx's configuration of the site: ``make docs``. :mod:`docs.site` fills its generated pages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import site
from study import __version__

project, version, release = "study", __version__, __version__
extensions = [
    *("myst_parser", "sphinx_click", "sphinx_design"),
    *("sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"),
    "docs.site",
]
exclude_patterns = ["examples"]
suppress_warnings = ["toc.not_included"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_mock_imports = ["axolotl"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay short: the docstrings give shapes and units
autosummary_generate = False
nitpicky = True
nitpick_ignore_regex = site.ELSEWHERE

html_theme = "furo"
html_title = "study"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"
