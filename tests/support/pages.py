"""The report as a page, taken apart."""

import html.parser


class Page(html.parser.HTMLParser):
    """The cells' data, every table as rows of texts, and the elements there are."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tables, self.elements, self.texts = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        values = dict(attributes)
        if "data-name" in values:
            self.cells.append(values)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th", "caption"):
            self.texts = []

    def handle_data(self, data):
        self.texts.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self.texts).strip())
        if tag == "caption":
            self.tables[-1].append("".join(self.texts))

    def table(self, caption):
        return next(rows[2:] for rows in self.tables if rows[0] == caption)
