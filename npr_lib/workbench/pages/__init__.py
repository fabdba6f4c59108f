"""The pages of a run: executed notebooks as HTML, and the index. They open without a network.

    write_notebook                  an executed notebook -> html/<stage>.html, with plotly's script
    write_index                     manifest, metrics and pages of a run -> index.html
    out_of_date                     which stages show results that no longer hold, and why
    page, table, CONFIG             for whoever has a page of its own to write (`npr_lib.bench`)

What they look like stands in `templates/` (jinja2; what isn't said to be HTML is escaped) and its
style sheet. Nothing here imports from the rest of the workbench: a page is made of files.
"""

from npr_lib.workbench.pages.index import write_index
from npr_lib.workbench.pages.notebook import CONFIG, Page, write_notebook
from npr_lib.workbench.pages.state import out_of_date
from npr_lib.workbench.pages.template import page, table

__all__ = [
    "CONFIG",
    "Page",
    "out_of_date",
    "page",
    "table",
    "write_index",
    "write_notebook",
]
