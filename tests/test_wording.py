import pytest

from mlingo_jax.wording import counted


@pytest.mark.parametrize(("count", "said"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (445_000, "445,000 clips")])
def test_a_noun_is_one_or_many(count, said):
    assert counted(count, "clip") == said
