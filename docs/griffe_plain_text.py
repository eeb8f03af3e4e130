"""Docstrings are plain text: `<x_i, y_j>` is an inner product there, and to Markdown it would be an HTML tag."""

import re

import griffe

# A code span, or an indented line, which Markdown makes a code block of: both are shown as they stand.
_CODE = re.compile(r"(`[^`]*`|^ {4}.*$)", flags=re.MULTILINE)


def plain_text(text: str) -> str:
    parts = _CODE.split(text)
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "".join(parts)


class PlainText(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = plain_text(obj.docstring.value)
