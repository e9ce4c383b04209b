"""The documentation site. `make docs` builds it; the built pages ask no other host for anything."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "docs" / "extensions")]
# For the notebooks: `retro` of this tree, whatever is installed, and no accelerator.
os.environ["PYTHONPATH"] = str(_ROOT)
os.environ["BASH_FUNC_retro%%"] = (
    f'() {{ "{sys.executable}" -m experiments.retro "$@"; }}'
)
os.environ["JAX_PLATFORMS"] = "cpu"

project = "retro-jax"
author = "the authors of retro-jax"
extensions = [
    "myst_nb",
    "autoapi.extension",
    "sphinx.ext.napoleon",
    "offline",
    "settings_table",
]
exclude_patterns = ["results", "extensions"]

# Pages are MyST; two of them are notebooks, which are run whenever the site is built.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 3600  # of a cell, on a busy machine
nb_merge_streams = True

# The reference is read from the sources, which are not imported: no library is loaded.
autoapi_dirs = ["../retro_jax", "../data_pipeline"]
autoapi_generate_api_docs = False
autoapi_python_class_content = "both"
autoapi_member_order = "bysource"
autoapi_add_toctree_entry = False
default_role = "literal"  # docstrings write `code` in single quotes
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
toc_object_entries = False

html_theme = "furo"
html_title = "retro-jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False


def setup(app):
    """Has the quickstart read, and so run, before the page that looks into its run."""
    app.connect(
        "env-before-read-docs", lambda app, env, names: names.sort(key=_is_later)
    )


def _is_later(name: str) -> bool:
    return name != "quickstart"
