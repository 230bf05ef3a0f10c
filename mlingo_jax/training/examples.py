"""Which examples a run trains on and which it holds out: a manifest's, or those of prepared datasets."""

from configs.base import Config
from mlingo_jax.data.manifest import read_manifest, split_examples
from mlingo_jax.data.mixture import Mixture, evenly, parse_wanted, read_mixture
from mlingo_jax.errors import UserError
from mlingo_jax.training.music import heard_clips


def read_examples(config: Config) -> tuple[Mixture, Mixture]:
    """(to train on, held out).

    Raises:
        UserError: there are none, they are damaged or not prepared; or both a manifest and datasets are named.
    """
    data = config.data
    if data.manifest and data.datasets:
        raise UserError("config.data.manifest and config.data.datasets are both given: name one of them")
    if not data.manifest and not data.datasets:
        raise UserError(
            "config.data.manifest is empty: name the examples' file, with --config.data.manifest=…, or what was "
            "prepared, with --config.data.datasets=…"
        )
    if data.datasets:
        train = read_mixture(data.data_dir, parse_wanted(data.datasets, "config.data.datasets"))
        wanted = parse_wanted(data.evaluate, "config.data.evaluate") if data.evaluate else []
        held_out = read_mixture(data.data_dir, wanted)
    else:
        alone, apart = split_examples(read_manifest(data.manifest, heard=heard_clips(config)), data.eval_share)
        if not alone:
            raise UserError(f"{data.manifest}: no examples to train on; all are held out for evaluation")
        train, held_out = Mixture([alone]), Mixture([apart])
    return train, Mixture([evenly(held_out, data.eval_most)])
