"""Several examples in one row: which go together, and how their rows are joined.

tokens       a a a b b c c c c 0     three examples and padding
segments     1 1 1 2 2 3 3 3 3 0     tokens see their own segment alone
positions    0 1 2 0 1 0 1 2 3 0
music_index  - 0 - - 1 - 2 3 - -     each example has its own music tokens, one after the other in the row's music
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from mlingo_jax.data.prompt import Row

# Tokens in a row, unless an example is longer or the config says.
ROW_LENGTH = 512


@dataclass(frozen=True)
class Packing:
    """The examples of each of R rows.

    positions: of all E examples, row by row; row r holds positions[starts[r] : starts[r + 1]]. parts: rows that belong
    together, as the examples' parts do. music, examples: the most music tokens and examples that a row has.
    """

    positions: Int[np.ndarray, "E"]
    starts: Int[np.ndarray, "_"]
    parts: list[range]
    music: int
    examples: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> list[int]:
        return self.positions[self.starts[row] : self.starts[row + 1]].tolist()


def pack(
    lengths: Int32[np.ndarray, "E"],
    music: Int32[np.ndarray, "E"],
    parts: Sequence[range],
    *,
    length: int,
    seed: int,
) -> Packing:
    """Puts examples of these lengths (music included) into rows of at most `length`, each part into rows of its own.

    Best fit, the longest first: padding is next to none where there are short examples to fill up with. What is of one
    length is shuffled by the seed. The rows stay the same in every epoch; their order is drawn anew.
    """
    row_of = np.zeros(len(lengths), np.int64)
    rows: list[range] = []
    for number, part in enumerate(parts):
        order = np.random.default_rng([seed, number]).permutation(np.arange(part.start, part.stop))
        order = order[np.argsort(-lengths[order], kind="stable")]
        first = rows[-1].stop if rows else 0
        found = _best_fit(lengths[order], length)
        row_of[order] = first + found
        rows.append(range(first, first + int(found.max(initial=-1)) + 1))
    total = rows[-1].stop if rows else 0
    per_row = np.bincount(row_of, minlength=total)
    starts = np.concatenate([[0], np.cumsum(per_row)])
    most_music = int(np.bincount(row_of, music, minlength=total).max(initial=0))
    return Packing(np.argsort(row_of, kind="stable"), starts, rows, most_music, int(per_row.max(initial=0)))


def join(rows: Sequence[Row]) -> Row:
    """One row of several examples' rows."""
    tokens = np.cumsum([0, *((row.music_index >= 0).sum() for row in rows)])
    music = [np.where(r.music_index >= 0, r.music_index + t, -1) for r, t in zip(rows, tokens, strict=False)]
    return Row(
        tokens=np.concatenate([row.tokens for row in rows]),
        music_index=np.concatenate(music).astype(np.int32),
        positions=np.concatenate([row.positions for row in rows]),
        segments=np.concatenate([row.segments * np.int32(i) for i, row in enumerate(rows, 1)]),
        loss_weights=np.concatenate([row.loss_weights for row in rows]),
        truncated=any(row.truncated for row in rows),
    )


def _best_fit(lengths: Int32[np.ndarray, "E"], capacity: int) -> Int[np.ndarray, "E"]:
    """The row of each, in order: the fullest that has room, or a new one."""
    rows = np.zeros(len(lengths), np.int64)
    by_room: defaultdict[int, list[int]] = defaultdict(list)
    # Bit r is set where there are rows with room r: the least room that is enough is found without a search.
    rooms, count = 0, 0
    for i, size in enumerate(lengths.tolist()):
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, count
            count += 1
        rows[i] = row
        by_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return rows
