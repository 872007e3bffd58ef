"""The site: `make docs` builds it from this folder, without a network."""

import sys
from pathlib import Path

from backspike.version import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "backspike"
author = "The backspike developers"
copyright = author
version = release = __version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "backspike_site.made",
    "backspike_site.docstrings",
    "backspike_site.mathjax_files",
    "backspike_site.cheat_sheet",
    "backspike_site.linked_pages",
]
exclude_patterns = ["_made", "backspike_site"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = True

# the course runs when the site is built; what did not change is taken from the cache
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parents[1] / "build/docs-cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_execution_in_temp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
default_role = "code"  # in docstrings, `x` is code
maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"backspike {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b63b0",
        "color-brand-content": "#0b63b0",
        "font-stack": "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb6ff",
        "color-brand-content": "#6cb6ff",
    },
}
pygments_dark_style = "monokai"
smartquotes = False  # they would change options such as --from
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
