"""Options that are a number or a word, and numbers of things in words."""

from ..runtime.errors import UsageError


def number_or(option: str, text: str, *words: str) -> int | str:
    """What `--option text` means: a whole number, or one of the words. Raises UsageError."""
    for word in words:
        if text.strip().lower() == word:
            return word
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} is {text!r}; wanted a number or {' or '.join(words)}") from None


def counted(n: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
