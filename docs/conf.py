"""Sphinx over what `build.py` has written; nothing is executed and nothing is asked of another machine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "mgenb"
author = "The mgenb maintainers"
html_title = "mgenb"
html_theme = "sphinx_book_theme"
extensions = ["myst_nb", "sphinx.ext.autodoc", "mathml", "docstrings"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_last_updated_fmt = None
html_baseurl = ""
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search stands above the contents already
}
pygments_style = "default"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # sliders need a kernel; what they load comes from elsewhere
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
nitpick_ignore_regex = [("py:.*", r"(?!mgenb\.).*")]  # other packages, whose pages are elsewhere
