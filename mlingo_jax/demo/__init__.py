"""The demo: a corpus and two small towers made from nothing, and a report on what the trained adapter has learnt."""

from mlingo_jax.demo.materials import prepare
from mlingo_jax.demo.report import report

__all__ = ["prepare", "report"]
