"""Numbers in messages."""


def counted(count: int, noun: str) -> str:
    """So many of a thing, as "1 clip" or "1,200 clips"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
