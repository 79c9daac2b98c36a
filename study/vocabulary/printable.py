"""Names that others wrote, as text that a terminal, a page or a figure can print."""

MOST_CHARACTERS = 300


def printable(value: object, most: int = MOST_CHARACTERS) -> str:
    r"""``value`` as one line of visible text, cut after ``most`` characters.

    Control characters, line breaks, marks that turn the direction of text around and lone
    surrogates are written as Python writes them.

    >>> printable("a\nb\u202ec")
    'a\\nb\\u202ec'
    """
    text = str(value)
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
