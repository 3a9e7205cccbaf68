"""An HTML page, read back."""
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids, self.tags = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if 'id' in attributes:
            self.ids.add(attributes['id'])
        if tag == 'img':
            self.images.append(attributes)
        for name in ('href', 'src'):
            if name in attributes:
                self.links.append(attributes[name])
