"""What a metric keeps of each example: statistics that add up, so that any subset or resample is scored by a sum.

N: examples. S: statistics of an example. K: shuffles. D: draws of a floor.
"""

import dataclasses
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mlingo_jax.files import atomic_replace

BLEU_ORDERS: Mapping[str, int] = {f"standard.bleu{order}": order for order in (1, 2, 3, 4)}
_FLOOR = "floor "


@dataclasses.dataclass(frozen=True)
class Scored:
    """A metric's statistics.

    own: of each answer for its own clip. shuffled: of the same answers dealt to other clips, K times. floors: of what
    can be answered without listening, each drawn D times.
    """

    own: Float[np.ndarray, "N S"]
    shuffled: Float[np.ndarray, "K N S"]
    floors: Mapping[str, Float[np.ndarray, "D N S"]] = dataclasses.field(default_factory=dict)


def select(scored: Scored, where: Sequence[int]) -> Scored:
    """The statistics of some of the examples."""
    floors = {name: drawn[:, where] for name, drawn in scored.floors.items()}
    return Scored(scored.own[where], scored.shuffled[:, where], floors)


def mean_statistics(scores: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 2"]:
    """(score, 1) of each example: the statistics of a mean."""
    return np.stack([scores, np.ones_like(scores)], axis=-1)


def ratio(sums: Float[np.ndarray, "*shape S"]) -> Float[np.ndarray, "*shape"]:
    """The first sum over the second: a mean over examples, or over tokens. Not a number where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def save_scored(folder: Path, metric: str, scored: Scored, key: str) -> None:
    """Keeps a metric's statistics. key: what they depend on; `load_scored` gives them back for the same key alone."""
    folder.mkdir(parents=True, exist_ok=True)
    floors = {f"{_FLOOR}{name}": values for name, values in scored.floors.items()}
    with atomic_replace(_path(folder, metric)) as partial_file, partial_file.open("wb") as file:
        arrays = {"key": np.array(key), "own": scored.own, "shuffled": scored.shuffled, **floors}
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_scored(folder: Path, metric: str, key: str | None = None) -> Scored | None:
    """A metric's statistics; None if they are not there, damaged, or of another key (None: of any)."""
    path = _path(folder, metric)
    # numpy complains of a file that was cut off even while its error is caught.
    if not zipfile.is_zipfile(path):
        return None
    try:
        with np.load(path) as file:
            if key is not None and str(file["key"]) != key:
                return None
            floors = {n.removeprefix(_FLOOR): file[n] for n in file.files if n.startswith(_FLOOR)}
            return Scored(file["own"], file["shuffled"], floors)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _path(folder: Path, metric: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', metric)}.npz"
