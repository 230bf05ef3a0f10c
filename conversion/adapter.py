"""The adapter at rest: MusiLingo's names and layouts of its two tensors and ours, and the files it may come in."""

from pathlib import Path

from flax import nnx

from conversion import released
from conversion.folders import Found, identify
from conversion.keymap import BUFFERS, Entry, Rule, check, entries, parameters, to_flax
from conversion.tensors import Tensor, Tensors, read_checkpoint, read_file
from mlingo_jax.errors import UserError
from mlingo_jax.models.adapter import Adapter

RULES = (
    Rule("llama_proj.weight", "projection.kernel", "E D -> D E"),
    Rule("llama_proj.bias", "projection.bias", "E -> E"),
)
# Has no rule: the original takes the plain mean over the encoder's hidden states.
STATE_LOGITS = "state_logits"


def open_adapter(source: Path) -> dict[str, Tensor]:
    """An adapter's tensors by Flax's names: of a `.pth` or `.safetensors`, or of an adapter's or a MusiLingo's folder.

    Raises:
        UserError: there is no adapter, its file is broken, or tensors are missing, left over or of the wrong shape.
    """
    found = identify(source)
    if found == Found("musilingo", "jax"):
        return open_adapter(source / released.PARTS["adapter"].folder)
    if found.kind == "musilingo":
        return _as_flax(released.read_adapter(source), source)
    if found.kind != "adapter" or found.layout == "run":
        raise UserError(f"{source}: expected an adapter (.pth, .safetensors, converted) or a MusiLingo folder")
    return _as_flax(read_file(source) if source.is_file() else read_checkpoint(source), source)


def adapter_entries(tensors: Tensors) -> list[Entry]:
    """Both sides of an adapter's tensors, which are given by Flax's names; learned state weights have no other side."""
    features, tokens = tensors["projection.kernel"].shape
    return _entries(features, tokens)


def _entries(features: int, tokens: int) -> list[Entry]:
    model = nnx.eval_shape(lambda: Adapter(features, tokens, rngs=nnx.Rngs(0)))
    return entries(RULES, parameters(model))


def _as_flax(tensors: Tensors, source: Path) -> dict[str, Tensor]:
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
    for name in ("projection.kernel", "llama_proj.weight"):
        if name in tensors and len(tensors[name].shape) == 2:
            break
    else:
        raise UserError(
            f"{source}: no adapter: expected a matrix llama_proj.weight among {', '.join(tensors) or 'nothing'}"
        )
    if name == "llama_proj.weight":
        tokens, features = tensors[name].shape
        return to_flax(_entries(features, tokens), tensors, str(source))
    expected = {entry.flax: entry.flax_shape for entry in adapter_entries(tensors)}
    if (logits := tensors.get(STATE_LOGITS)) is not None and len(logits.shape) == 1:
        expected[STATE_LOGITS] = logits.shape
    check(expected, tensors, str(source))
    return dict(tensors)
