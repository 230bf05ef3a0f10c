"""MusiLingo put together: its networks bound, music tokens placed among the text, and the answer scored.

Axes: B rows, L positions in a row, M music tokens, N samples, D encoder width, E language-model width.
The batch contract (docs/architecture.md) gives each row's fields.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mlingo_jax.models.adapter import Adapter
from mlingo_jax.models.encoder import Encoder
from mlingo_jax.models.llama import Llama, vocabulary_logits
from mlingo_jax.models.partition import constrain

# A block of logits is [B, 64, V] in float32: for 32 rows of LLaMA's vocabulary 0.26 GB, not 1 GB as at L = 256.
LOGITS_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static halves of the networks (`nnx.split`), and what is static of how they are run.

    Attributes:
        encoder: None where the music comes as features.
        frames_per_token: encoder frames averaged into one music token; only with an encoder.
        remat: what the backward pass recomputes, see `mlingo_jax.models.llama.REMAT`.
    """

    llm: nnx.GraphDef[Llama]
    adapter: nnx.GraphDef[Adapter]
    encoder: nnx.GraphDef[Encoder] | None = None
    frames_per_token: int = 0
    remat: str = "none"


class Bound(NamedTuple):
    """The networks with their parameters."""

    llm: Llama
    adapter: Adapter
    encoder: Encoder | None


def bind(networks: Networks, frozen: Mapping[str, Any], trained: Mapping[str, Any]) -> Bound:
    """Binds what is trained to what is frozen.

    Args:
        networks: the static halves.
        frozen: the towers' parameters: `llm`, and `encoder` where there is one.
        trained: the trained parameters by the names of their parts: `adapter`.
    """
    encoder = networks.encoder and nnx.merge(networks.encoder, nnx.State(frozen["encoder"]))
    llm = nnx.merge(networks.llm, nnx.State(frozen["llm"]))
    return Bound(llm, nnx.merge(networks.adapter, nnx.State(trained["adapter"])), encoder)


@jax.named_scope("embed_rows")
def embed_rows(
    llm: Llama,
    tokens: Int[Array, "B L"],
    music_index: Int[Array, "B L"],
    music_tokens: Float[Array, "B M E"],
) -> Float[Array, "B L E"]:
    """The rows' embeddings: text tokens, and music token k of the row wherever `music_index` is k >= 0.

    tokens      [[1, 835,  0,  0, 1533]]
    music_index [[-1, -1,  0,  1,   -1]]   -> [bos, '▁###', music 0, music 1, '</']
    """
    text = llm.embed(tokens)
    chosen = jax.nn.one_hot(music_index, music_tokens.shape[1], dtype=text.dtype)
    # A product, and so is its gradient: a gather's would be a scatter, which a GPU adds up in any order.
    music = jnp.einsum("BLM,BME->BLE", chosen, music_tokens.astype(text.dtype), precision=jax.lax.Precision.HIGHEST)
    return jnp.where(music_index[..., None] >= 0, music, text)


def token_log_probs(
    llm: Llama, adapter: Adapter, batch: Mapping[str, Array], music: Float[Array, "B ..."], *, remat: str = "none"
) -> Float[Array, "B L"]:
    """The log-probability of each row's token given all before it in its segment, in float32.

    Position 0 has no predecessor and gets 0; positions of music or padding get a number without meaning: weigh by
    `loss_weights`. `music` is the features before the adapter: [B M D], or [B S M D] with learned layer weights.
    """
    embeddings = embed_rows(llm, batch["tokens"], batch["music_index"], adapter.tokens(music))
    hidden = llm(embeddings, batch["positions"], batch["segments"], remat=remat)
    return next_token_log_probs(llm, hidden, batch["tokens"])


def answer_loss(
    llm: Llama, adapter: Adapter, batch: Mapping[str, Array], music: Float[Array, "B ..."], *, remat: str = "none"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy summed over the answers' tokens, and the sum of their weights: (sum, weight), float32.

    Their quotient is the loss; sums are what adds up over micro-batches and devices.
    """
    weights = batch["loss_weights"]
    log_probs = token_log_probs(llm, adapter, batch, music, remat=remat)
    # Not a product: a token outside the answer may have a log-probability of -inf.
    return -jnp.where(weights > 0, weights * log_probs, 0).sum(), weights.sum()


@jax.named_scope("log_probs")
def next_token_log_probs(llm: Llama, hidden: Float[Array, "B L E"], tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """The log-probability of each token given the hidden state before it, in float32; the first one gets 0.

    Vocabulary logits are computed block by block and recomputed in the backward pass, so they never stand whole.
    """
    batch, length = tokens.shape
    padding = -(length - 1) % LOGITS_BLOCK
    hidden = jnp.pad(hidden[:, :-1], ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, padding)))

    # Here, not in the loop: on a mesh that keeps it in parts it is put together once, not for every block.
    table = constrain(llm.table, "VD")

    def blocks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, -1, LOGITS_BLOCK, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def score(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
        hidden, targets = block
        logits = vocabulary_logits(hidden, table)
        # No gather here either.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        chosen = jnp.where(is_target, logits, 0).sum(-1)
        return None, chosen - jax.nn.logsumexp(logits, axis=-1)

    _, scores = jax.lax.scan(score, None, (blocks(hidden), blocks(targets)))
    scores = jnp.moveaxis(scores, 0, 1).reshape(batch, -1)[:, : length - 1]
    return jnp.pad(scores, ((0, 0), (1, 0)))
