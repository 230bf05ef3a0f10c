"""Which clips are asked about: known ones that are not kept for evaluation elsewhere."""

import dataclasses
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mlingo_jax.data.overlap import LISTED, is_listed, is_music_qa_evaluation, plain_id
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.sources import read_ids

KNOWN_SETS = {
    "music_caps_eval": "MusicCaps' 2,858 evaluation clips, where they come as training data (MusicBench, AudioSet)",
    "song_describer": "Song Describer's 706 tracks of MTG-Jamendo",
    "music_qa_eval": "MusicQA's evaluation clips: the folders 00 to 09 of MTG-Jamendo",
    "jamendo_test": "the test tracks of MTG-Jamendo's split-0, if its splits/ folder lies beside the source",
}
_JAMENDO_TEST = Path("splits/split-0/autotagging-test.tsv")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Says of each clip why it is left out. listed: ids of the user's own lists; tests: of MTG-Jamendo's test split."""

    sets: frozenset[str]
    listed: frozenset[str]
    tests: frozenset[str]

    def reason(self, source: Source) -> str | None:
        """The name of the set or list that the clip is kept for; None if it is none of them.

        Clips that come as evaluation data stay, as such; but those of one's own lists never do.
        """
        clip = plain_id(source.clip)
        if not source.is_known:
            return "nothing_known"
        if clip in self.listed:
            return "excluded_list"
        if source.split == "eval":
            return None
        for name in LISTED:
            if name in self.sets and is_listed(name, source.collection, source.clip):
                return name
        if source.collection == "jamendo":
            if "music_qa_eval" in self.sets and is_music_qa_evaluation(source.audio):
                return "music_qa_eval"
            if "jamendo_test" in self.sets and clip in self.tests:
                return "jamendo_test"
        return None


def make_selection(source: str, exclude: Iterable[Path], keep: Iterable[str]) -> Selection:
    """exclude: files of ids. keep: names of `KNOWN_SETS` that are not left out. Raises UserError as `read_ids`."""
    sets = frozenset(KNOWN_SETS) - set(keep)
    listed = frozenset(plain_id(clip) for path in exclude for clip in read_ids(path))
    splits = Path(source).parent / _JAMENDO_TEST
    tests = frozenset(plain_id(clip) for clip in read_ids(splits)) if splits.is_file() else frozenset()
    return Selection(sets, listed, tests)


def choose(
    sources: Callable[[], Iterable[Source]], selection: Selection, limit: int | None, seed: int
) -> tuple[Callable[[], Iterator[Source]], Counter[str], Counter[str]]:
    """(the chosen clips in their order, how many of each split, how many were left out by which reason).

    limit: at most so many clips, drawn by the seed. Nothing but counts and the draw is held in memory.
    """
    left_out: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    for source in sources():
        reason = selection.reason(source)
        (left_out if reason else chosen)[reason or source.split] += 1
    drawn = None
    if limit is not None and limit < chosen.total():
        drawn = draw((s for s in sources() if selection.reason(s) is None), limit, seed)
        left_out["limit"] = chosen.total() - limit

    def kept() -> Iterator[Source]:
        places = (source for source in sources() if selection.reason(source) is None)
        return (source for place, source in enumerate(places) if drawn is None or place in drawn)

    return kept, chosen if drawn is None else Counter(source.split for source in kept()), left_out


def draw(sources: Iterable[Source], count: int, seed: int) -> frozenset[int]:
    """The places of `count` clips, drawn by the seed."""
    ranks = (
        (hashlib.sha256(f"{seed}\0{place}\0{source.clip}".encode()).digest(), place)
        for place, source in enumerate(sources)
    )
    return frozenset(place for _, place in heapq.nsmallest(count, ranks))
