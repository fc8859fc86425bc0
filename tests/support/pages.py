"""The report as a page, taken apart."""

import html.parser

# Elements that have no end tag.
VOID = {"meta", "input", "wbr", "br", "link", "img"}


class Page(html.parser.HTMLParser):
    """The cells' data, every table as rows of texts, the elements there are, and its outline.

    `problems` are end tags that close another element than the one that is open.
    """

    def __init__(self, text):
        super().__init__()
        self.cells, self.tables, self.elements, self.texts = [], [], set(), []
        self.open, self.problems, self.headings, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        if "data-name" in values:
            self.cells.append(values)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th", "caption", "h1", "h2", "h3", "title"):
            self.texts = []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"/{tag}")
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self.texts).strip())
        if tag == "caption":
            self.tables[-1].append("".join(self.texts))
        if tag in ("h1", "h2", "h3", "title"):
            self.headings.append((tag, "".join(self.texts)))

    def table(self, caption):
        return next(rows[2:] for rows in self.tables if rows[0] == caption)
