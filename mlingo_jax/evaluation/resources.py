"""What metrics read from the disk, and never fetch."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Resources:
    """What some metrics need besides the answers.

    nltk_data: a folder of nltk's data with WordNet, or None for where nltk looks. bert: the folder of the model for
    BERTScore, or None; bert_layers: which of its layers to compare, or None for bert-score's own choice.
    """

    nltk_data: Path | None = None
    bert: Path | None = None
    bert_layers: int | None = None
