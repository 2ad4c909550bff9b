"""The pages' templates, of the folder stylegen/templates."""

import jinja2

from stylegen.report.markdown import escaped, fenced

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("stylegen"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"escaped": escaped, "fenced": fenced}
