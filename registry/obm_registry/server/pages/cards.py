"""The card of an expert: Markdown that its sender wrote, as HTML that can do nothing.

HTML in the text is shown as text, pictures are left out, links lead only to web pages and mail.
"""

from __future__ import annotations

from markdown_it import MarkdownIt
from markupsafe import Markup

CARD_TYPE = "text/markdown"
MAX_NBYTES = 64 << 10

_markdown = MarkdownIt("js-default", {"html": False, "linkify": False, "maxNesting": 20}).disable(["image"])
_LINKS = ("http:", "https:", "mailto:")
_markdown.validateLink = lambda url: url.strip().lower().startswith(_LINKS)  # type: ignore[method-assign]


def render(data: bytes) -> Markup:
    """The HTML of a card of at most `MAX_NBYTES` bytes; bytes that are no UTF-8 are replaced."""
    return Markup(_markdown.render(data.decode("utf-8", "replace")))  # noqa: S704 - the renderer escapes everything
