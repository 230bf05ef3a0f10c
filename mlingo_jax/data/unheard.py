"""Clips that cannot be heard: each is named once, and past a share of all clips the run stops."""

from collections.abc import Callable, Collection

from mlingo_jax.data.rows import Batch
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

_NAMED = 5


def named(reasons: Collection[str]) -> str:
    """The first few of the reasons, for a line of text."""
    return "; ".join([*list(reasons)[:_NAMED], *["…"] * (len(reasons) > _NAMED)])


def require_few(reasons: Collection[str], clips: int, max_bad_fraction: float, then: str) -> None:
    """Raises UserError if more than this share of all clips cannot be heard; `then` ends its message."""
    if len(reasons) > max_bad_fraction * clips:
        raise UserError(
            f"{len(reasons)} of {counted(clips, 'clip')} cannot be heard (allowed: {max_bad_fraction:.1%}): "
            f"{named(reasons)}; {then}"
        )


class Unheard:
    """Sees to the clips that cannot be heard while a run goes on; their rows are empty."""

    def __init__(self, clips: int, max_bad_fraction: float, say: Callable[[str], None]):
        """clips: of the run. say: where each bad clip is named, once."""
        self._clips, self._most, self._say = clips, max_bad_fraction, say
        self._reasons: list[str] = []

    def note(self, batch: Batch) -> None:
        """Counts what could not be heard for this batch. Raises UserError when it is too many clips since the start."""
        for reason in dict.fromkeys(batch.get("unheard", ())):
            if reason and reason not in self._reasons:
                self._reasons.append(reason)
                self._say(f"cannot be heard, its examples are skipped: {reason}")
                require_few(self._reasons, self._clips, self._most, "a higher data.max_bad_fraction skips more of them")
