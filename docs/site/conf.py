"""Sphinx configuration of the documentation site; `build.py` stages its pages and runs Sphinx."""

import importlib.metadata
import re

project = "jaxadv"
author = "the authors of jaxadv"
release = importlib.metadata.version("jaxadv")
html_title = f"jaxadv {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
# Pages are plain Markdown: a line that begins with % is text.
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target", "myst_role"]
# Links between pages are checked and rewritten by build.py.
myst_url_schemes = {
    "http": None,
    "https": None,
    "page": "{{path}}",
    "place": "{{path}}#{{fragment}}",
}
exclude_patterns = ["files"]
# build.py copies MathJax into the site: pages load nothing from elsewhere.
mathjax_path = "mathjax/tex-svg.js"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
# In docstrings a single backquote is code.
default_role = "code"

highlight_language = "bash"

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]


_SECTION = re.compile(r"(Args|Attributes|Raises):$")
_FIELD = re.compile(r"[*]{0,2}[\w.]+(, [*]{0,2}\w+)*( \([^)]*\))?: ")


def _indent(app, what, name, member, options, lines):
    """Indents the further lines of an argument, which may stand below its name, for napoleon."""
    base = None
    for number, line in enumerate(lines):
        text = line.strip()
        if _SECTION.match(text):
            base = len(line) - len(line.lstrip()) + 4
        elif base is not None and text:
            indent = len(line) - len(line.lstrip())
            if indent < base - 2:
                base = None
            elif indent <= base and not _FIELD.match(text):
                lines[number] = " " * (base + 4) + text


def _skip(app, what, name, member, skip, options):
    """Leaves out the fields of named tuples, which the class's own docstring describes."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None


_OPTION = re.compile(r'<span class="pre">(-[^<]{1,30})</span>')
_FORMULA = re.compile(r'(<span class="math [^"]*">[^<]{1,24}</span>)([,.;:)]+)')


def _unbroken(app, pagename, templatename, context, doctree):
    """Keeps options (--hosts) in one line, and short formulas with the punctuation after them."""
    if "body" in context:
        body = _OPTION.sub(r'<span class="pre unbroken">\1</span>', context["body"])
        context["body"] = _FORMULA.sub(r'<span class="unbroken">\1\2</span>', body)


def setup(app):
    """Called by Sphinx."""
    app.connect("html-page-context", _unbroken)
    app.connect("autodoc-process-docstring", _indent, priority=100)
    app.connect("autodoc-skip-member", _skip)
