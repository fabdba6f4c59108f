"""What a browser would fetch while it opens a page, found without the code under test."""

import re
from html.parser import HTMLParser


class Sources(HTMLParser):
    """Collects the sources of scripts, images, style sheets, frames and fonts."""

    ATTRIBUTES = ("src", "srcset", "data", "poster", "background", "action")
    STYLE = re.compile(r"""url\(\s*["']?([^)"']*)|@import\s+["']([^"']*)""")
    IMPORT = re.compile(r"""\bimport\s*(?:[\w{}*,\s]+\s*from\s*)?\(?["'](https?:[^"']+)""")

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in self.ATTRIBUTES or (name == "href" and tag in ("link", "image", "use")):
                self.found.append(value)
            if name == "style":
                self._style(value)

    def handle_data(self, text):
        if self.lasttag == "style":
            self._style(text)
        if self.lasttag == "script":
            self.found += self.IMPORT.findall(text)

    def _style(self, text):
        self.found += [one or other for one, other in self.STYLE.findall(text)]


def sources(page):
    parser = Sources()
    parser.feed(page)
    return parser.found


def is_local(source):
    """A file beside the page, or data in the page itself."""
    return source.startswith(("data:", "#")) or re.fullmatch(r"[\w.-][\w./-]*", source) is not None
