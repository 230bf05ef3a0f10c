"""Clips that cannot be read: each is named once, and past a share of all clips the run stops."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mlingo_jax.data.rows import Batch
from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic
from mlingo_jax.processes import all_gather, is_primary
from mlingo_jax.wording import counted

LISTED = "unreadable.txt"
"""In a run's folder, or a feature cache: a line for each clip that cannot be read, with the reason."""
_NAMED = 5


def named(reasons: Collection[str]) -> str:
    """The first few of the reasons, for a line of text."""
    return "; ".join([*list(reasons)[:_NAMED], *["…"] * (len(reasons) > _NAMED)])


def list_all(folder: Path, reasons: Iterable[str]) -> None:
    """Puts all reasons into the folder's list, in place of the one there. Raises UserError if it cannot be written."""
    # A name that is not UTF-8 is written as Python would.
    write_atomic(folder / LISTED, (f"{reason.encode(errors='backslashreplace').decode()}\n" for reason in reasons))


def require_few(reasons: Collection[str], clips: int, max_bad_fraction: float, folder: Path, then: str) -> None:
    """Raises UserError if more than this share of all clips cannot be read; `then` ends its message.

    folder: where they are listed.
    """
    if len(reasons) > max_bad_fraction * clips:
        listed = f" (all of them: {folder / LISTED})" if len(reasons) > _NAMED else ""
        raise UserError(
            f"{len(reasons)} of {counted(clips, 'clip')} cannot be read (allowed: {max_bad_fraction:.1%}): "
            f"{named(reasons)}{listed}; {then}"
        )


class Unreadable:
    """Sees to the clips that cannot be read while a run continues; their rows are empty."""

    def __init__(
        self, clips: int, max_bad_fraction: float, say: Callable[[str], None], known: Iterable[str], folder: Path
    ):
        """Begins with what is known already.

        clips: of the run. say: where each bad clip is named, once. known: reasons told before, as `share` gave.
        folder: the run's, for the list of all of them.
        """
        self._clips, self._most, self._say, self._folder = clips, max_bad_fraction, say, folder
        self._reasons = dict.fromkeys(known)

    def note(self, batch: Batch) -> None:
        """Counts what could not be read for this batch. Raises UserError when it is too many clips since the start."""
        for reason in batch.get("unreadable", ()):
            if reason and reason not in self._reasons:
                self._reasons[reason] = None
                self._say(f"cannot be read, its examples are skipped: {reason}")
                self._list()
                self._require_few()

    def share(self) -> list[str]:
        """Why clips could not be read, by any of the processes, all of which know of it then. Raises as `note`."""
        own = len(self._reasons)
        self._reasons = dict.fromkeys(reason for reasons in all_gather(list(self._reasons)) for reason in reasons)
        if len(self._reasons) > own:
            self._list()
        self._require_few()
        return list(self._reasons)

    def _list(self) -> None:
        if is_primary():
            list_all(self._folder, self._reasons)

    def _require_few(self) -> None:
        require_few(
            self._reasons, self._clips, self._most, self._folder, "a higher data.max_bad_fraction skips more of them"
        )
