"""The configuration of the site, a page of plain values; what they cannot say is in ``companion.site``."""

from companion import site

project = "semaug"
html_title = "semaug · semantic augmentation"
author = "the authors of semaug"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
root_doc = "index"
html_theme = "sphinx_book_theme"
html_static_path = [str(site.HERE / "static"), str(site.vendored("mathjax"))]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""  # the download button gives the notebook
html_theme_options = {
    "repository_url": site.REPOSITORY,
    "repository_branch": "main",
    "path_to_docs": "",  # pages have the repository's own paths
    "use_repository_button": True,
    "use_download_button": True,
    "launch_buttons": {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the menu has the search
    "show_toc_level": 2,
    "search_as_you_type": False,
}

# Notebooks are shown as committed, and never run here
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4

# Mathematics from the site itself: no page asks another server for anything
mathjax_path = "es5/tex-chtml.js"
mathjax3_config = {"chtml": {"displayAlign": "center"}, "options": {"enableMenu": False}}

# The reference of the package
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 60
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False

setup = site.setup
