"""The Python interface: `mlingo_jax.load` gives a model that encodes clips, scores answers and answers questions.

Axes: B rows, L positions in a row, M (or K) music tokens, N samples, D encoder width, E language-model width.
"""

import dataclasses
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mlingo_jax.data.audio import AudioSettings, prepare_waveform, read_audio
from mlingo_jax.data.decoding import Mixdown
from mlingo_jax.data.prompt import Prompt, PromptSettings, Row, collate, open_prompt, read_context
from mlingo_jax.data.resampling import Resampling
from mlingo_jax.data.statistics import round_up
from mlingo_jax.errors import UserError
from mlingo_jax.features.encode import AudioEncoder
from mlingo_jax.inference.answering import answers, text
from mlingo_jax.inference.beams import Beams
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Answer, Options
from mlingo_jax.inference.prompts import about_clip, by_clip, salt_of
from mlingo_jax.inference.requests import Request
from mlingo_jax.inference.writing import open_writer
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.musilingo import Networks, bind, token_log_probs
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.sources import find_sources
from mlingo_jax.training.run import require_towers
from mlingo_jax.weights.load import Tower, fit_adapter, load_adapter, load_tower
from mlingo_jax.wording import counted

Clip = str | Path | tuple[np.ndarray, int]

# Rows are padded to a multiple of this many positions, so that questions of like length share a compiled program.
ROW_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, repr=False)
class MusiLingo:
    """A frozen encoder, a trained adapter and a frozen language model; made by `load`.

    A clip is an audio file's path, or (waveform, sample rate). Lists go together: clip i, question i, answer i; one
    question given as a string is asked about every clip.
    Whatever is asked in one call, each row's result is that of the row alone.
    """

    encoder: AudioEncoder
    llm: Tower
    adapter_graph: nnx.GraphDef[Adapter]
    adapter: Any
    prompt: Prompt
    mesh: Mesh | None = None

    def encode(self, clips: Sequence[Clip]) -> list[Float[np.ndarray, "..."]]:
        """Music features of each clip, before the adapter: float32 [K, D], one every 4.33 s with MusiLingo's window.

        With learned state weights in the adapter: [S, K, D], one row of features per hidden state of the encoder.

        Raises:
            UserError: a clip cannot be read, is shorter than the encoder's receptive field, or holds NaN.

        Example:
            >>> (features,) = model.encode(["song.wav"])
            >>> features.dtype, features.ndim
            (dtype('float32'), 2)
        """
        return self._encode(self._waveforms(clips))

    def score(
        self, clips: Sequence[Clip], questions: str | Sequence[str], answers: Sequence[str]
    ) -> list[Float[np.ndarray, "_"]]:
        """Log-probability of each token of each answer given clip and question, the end symbol's tokens included.

        An answer longer than the prompt's limit is cut as in training. The loss of row i is `-scores[i].mean()`.

        Raises:
            UserError: a clip cannot be read, or the lists are of different lengths.

        Example:
            >>> piano, drums = model.score(["song.wav"] * 2, "What plays?", ["A piano.", "Drums."])
            >>> likelier = max([piano, drums], key=lambda log_probs: log_probs.sum())
            >>> bool(likelier.sum() < 0)
            True
        """
        questions, answers = _one_each(clips, questions, "questions"), _one_each(clips, answers, "answers")
        features = self.encode(clips)
        rows = [self.prompt.row(q, a, f.shape[-2]) for q, a, f in zip(questions, answers, features, strict=True)]
        self._check_context([len(row.tokens) for row in rows], 0)
        with self._on_mesh():
            log_probs = np.asarray(_log_probs(self._networks, self._params, *self._batch(rows, features)))
        return [scores[: len(row.tokens)][row.loss_weights > 0] for scores, row in zip(log_probs, rows, strict=False)]

    def answer(
        self,
        clips: Sequence[Clip],
        questions: str | Sequence[str],
        *,
        max_new_tokens: int = 300,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        num_beams: int = 1,
        seed: int = 0,
    ) -> list[str]:
        """The answer to each question about each clip.

        Temperature 0 takes the most probable token (or, with `num_beams`, the best of that many beams); above 0 a token
        is drawn, from the `top_k` most probable ones and the smallest set of them that holds `top_p` of the mass.
        A draw depends on the seed, the clip and the question, not on the other rows.

        Raises:
            UserError: a clip cannot be read, the lists are of different lengths, or an option is out of its range.

        Example:
            >>> answers = model.answer(["song.wav", "other.wav"], "What plays?", max_new_tokens=8)
            >>> len(answers)
            2
        """
        options = Options(max_new_tokens, temperature, top_k, top_p, num_beams)
        return [answer.text for answer in self.generate(clips, questions, options, seed=seed)]

    def generate(
        self, clips: Sequence[Clip], questions: str | Sequence[str], options: Options | None = None, *, seed: int = 0
    ) -> list[Answer]:
        """What `answer` gives, with each answer's tokens and the reason why it ended.

        Example:
            >>> (answer,) = model.generate(["song.wav"], "What plays?", Options(max_new_tokens=8))
            >>> answer.finish_reason in ("stop", "eos", "length"), len(answer.tokens) <= 8
            (True, True)
        """
        options, questions = options or Options(), _one_each(clips, questions, "questions")
        waveforms = self._waveforms(clips)
        features = self._encode(waveforms)
        requests = [
            self.request(f, q, options, clip=_digest(w), salt=salt_of(q, w), seed=seed)
            for f, q, w in zip(features, questions, waveforms, strict=True)
        ]
        self._check_lengths(requests)
        order = by_clip(requests)
        found = dict(answers(self.writer(requests, at_most=len(requests)), (requests[i] for i in order)))
        return [found[place] for place in np.argsort(order)]

    def stream(
        self,
        clip: Clip,
        question: str,
        *,
        max_new_tokens: int = 300,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        num_beams: int = 1,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer in pieces, as it is written; put together they are what `answer` gives for this clip alone.

        Example:
            >>> pieces = list(model.stream("song.wav", "What plays?", max_new_tokens=8))
            >>> "".join(pieces) == model.answer(["song.wav"], "What plays?", max_new_tokens=8)[0]
            True
        """
        options = Options(max_new_tokens, temperature, top_k, top_p, num_beams)
        waveform = self._waveforms([clip])[0]
        features = self._encode([waveform])[0]
        salt = salt_of(question, waveform)
        request = self.request(features, question, options, clip=_digest(waveform), salt=salt, seed=seed)
        self._check_lengths([request])
        yield from text(self.writer([request], at_most=1), request)

    def request(
        self,
        features: Float[np.ndarray, "..."],
        question: str,
        options: Options,
        *,
        clip: Hashable,
        salt: int,
        seed: int = 0,
    ) -> Request:
        """A question for a `writer`, about music features as `encode` gives them.

        Requests about one clip, told apart by `clip`, share the reading of its music. Draws depend on seed and salt.
        """
        return about_clip(self.prompt, question, features, options, clip=clip, salt=salt, seed=seed)

    def writer(self, like: Sequence[Request], *, rows: int | None = None, at_most: int | None = None) -> Engine | Beams:
        """What answers requests: an engine, or for options with several beams, a search.

        Args:
            like: requests that it shall have room for from the start, with the options of all.
            rows: answers written at once; by default what the devices' memory holds.
            at_most: as many requests as will come at all, if that is known.
        """
        size = {"rows": rows, "at_most": at_most}
        return open_writer(self.llm, self._networks, self._params, self.prompt, like, **size, mesh=self.mesh)

    def __repr__(self) -> str:
        widths = f"{self.encoder.config.embed_dim} to {self.llm.config.embed_dim}"
        return f"MusiLingo(llm {self.llm.identity['name']}, {self.llm.identity['dtype']}, adapter {widths})"

    def _waveforms(self, clips: Sequence[Clip]) -> list[Float[np.ndarray, "_"]]:
        _require_list(clips)
        return [self._waveform(clip) for clip in clips]

    def _waveform(self, clip: Clip) -> Float[np.ndarray, "_"]:
        minimum = self.encoder.config.receptive_field
        if isinstance(clip, tuple):
            return prepare_waveform(*clip, self.encoder.audio, minimum=minimum)
        return read_audio(clip, self.encoder.audio, minimum=minimum)

    def _encode(self, waveforms: Sequence[Float[np.ndarray, "_"]]) -> list[Float[np.ndarray, "..."]]:
        # A clip asked several questions is encoded once.
        keys = [_digest(w) for w in waveforms]
        distinct = dict(zip(keys, waveforms, strict=True))
        with self._on_mesh():
            features = dict(zip(distinct, self.encoder(list(distinct.values())), strict=True))
        return [features[key] for key in keys]

    @cached_property
    def context(self) -> int | None:
        """How many tokens the language model was made for, if its folder says."""
        return read_context(self.llm.folder)

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        opening = len(self.prompt.opening)
        self._check_context(
            [opening + len(r.prefix.tokens) + len(r.question.tokens) for r in requests],
            requests[0].options.max_new_tokens,
        )

    def _check_context(self, lengths: Sequence[int], new: int) -> None:
        """Warns if a row with as many new tokens is longer than the language model was made for."""
        context, longest = self.context, max(lengths) + new
        if context is not None and longest > context:
            # Rounded up: of many batches, each a little longer, not every one has to be told.
            shown = round_up(longest, ROW_MULTIPLE)
            warnings.warn(
                f"rows of up to {shown:,} tokens, answers included, are longer than the {context:,} that "
                f"{self.llm.folder} was made for (its max_position_embeddings): expect poor answers past these; give "
                "shorter clips or a lower max_new_tokens",
                stacklevel=4,
            )

    def _batch(
        self, rows: Sequence[Row], features: Sequence[Float[np.ndarray, "..."]]
    ) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "B ..."]]:
        """Rows and features in arrays whose sizes are rounded up, so that few programs are compiled."""
        longest = max(len(row.tokens) for row in rows)
        count = 1 << (len(rows) - 1).bit_length()
        tokens = 1 << (max(f.shape[-2] for f in features) - 1).bit_length()
        music = np.zeros((count, *features[0].shape[:-2], tokens, features[0].shape[-1]), np.float32)
        for b, f in enumerate(features):
            music[b, ..., : f.shape[-2], :] = f
        return collate(rows, round_up(longest, ROW_MULTIPLE), count), music

    def _on_mesh(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def _networks(self) -> Networks:
        return Networks(self.llm.graphdef, self.adapter_graph)

    @property
    def _params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of the frozen networks, and those that were trained."""
        return {"llm": self.llm.params}, {"adapter": self.adapter}


def load(
    mert: str | Path | None = None,
    llm: str | Path | None = None,
    adapter: str | Path | None = None,
    dtype: DTypeLike = "bfloat16",
    mesh: Mesh | None = None,
    *,
    quantization: Quantization | None = None,
    prompt: PromptSettings | None = None,
    frames_per_token: int | None = None,
    mixdown: Mixdown = "mean",
    resampling: Resampling | None = None,
) -> MusiLingo:
    """Loads a MusiLingo, its towers in `dtype`, spread over `mesh` if there is one; the adapter is float32.

    Args:
        mert: the encoder: a Hugging Face or converted folder, or a hub id.
        llm: the language model, likewise; its folder holds the tokenizer.
        adapter: a MusiLingo `.pth`; a run's folder written by `mlingo_jax.train` (its last checkpoint is taken) or one
            of its checkpoints, RUN/checkpoints/STEP; or a released MusiLingo folder; None for an untrained one. A run
            or a released folder knows its towers: `mert` and `llm` may be left out.
        quantization: "int8" or "int4" keeps the language model's layers as integers, "none" in `dtype`; by default the
            run's, else "none".
        prompt: template, end symbol and limits; by default the run's, else the reference implementation's of stage 2.
        frames_per_token: encoder frames averaged into one music token; by default the run's, else the reference
            implementation's 325.
        mixdown: of a clip's channels their "mean", or the first one, "left": for clips whose channels cancel out.
        resampling: of audio, by "soxr" or exactly as torchaudio does ("sinc_hann"); by default the run's, else soxr.

    Raises:
        UserError: a folder, file or weight is missing or broken, the three do not fit one another, or the adapter is
            a run's and the towers are not those that it was trained with.

    Example:
        >>> model = mlingo_jax.load(mert="weights/mert", llm="weights/llm", dtype="float32")
        >>> model.llm.identity["dtype"]
        'float32'
    """
    sources = find_sources(mert, llm, adapter, quantization, prompt, frames_per_token, resampling)
    config, params = (None, None) if adapter is None else load_adapter(adapter)
    tower = load_tower(sources.mert, role="encoder", dtype=dtype, mesh=mesh)
    language = load_tower(sources.llm, role="llm", dtype=dtype, quantization=sources.quantization, mesh=mesh)
    if adapter is not None and sources.run is not None:
        require_towers(adapter, sources.run, mert=tower.identity, llm=language.identity)
    states = tower.config.states if config is not None and config.per_layer else None
    config = AdapterConfig(tower.config.embed_dim, language.config.embed_dim, states)
    fitted = fit_adapter(params, config, source=adapter or "")
    encoder = AudioEncoder(
        tower.graphdef,
        tower.params,
        tower.config,
        AudioSettings.from_folder(tower.folder, mixdown, sources.resampling),
        frames_per_token=sources.frames_per_token,
        per_layer=config.per_layer,
        mesh=mesh,
    )
    tokens = open_prompt(language.folder, sources.prompt, language.config.vocab_size)
    return MusiLingo(encoder, language, fitted.graphdef, fitted.params, tokens, mesh)


def _digest(waveform: Float[np.ndarray, "_"]) -> bytes:
    return sha256(waveform.data).digest()


def _require_list(clips: Sequence[Clip]) -> None:
    """Refuses what is easily given instead of a list of clips, and would be taken for one."""
    alone = isinstance(clips, str | Path) or (isinstance(clips, tuple) and isinstance(clips[0], np.ndarray))
    if alone or isinstance(clips, np.ndarray):
        raise UserError(
            "clips: expected a list of files or of (waveform, sample rate), found a single one; give [clip]"
        )
    if not clips:
        raise UserError("clips: the list is empty")


def _one_each(clips: Sequence[Clip], texts: str | Sequence[str], name: str) -> list[str]:
    _require_list(clips)
    texts = [texts] * len(clips) if isinstance(texts, str) else list(texts)
    if len(texts) != len(clips):
        raise UserError(f"{name}: expected one for each of {counted(len(clips), 'clip')}, found {len(texts)}")
    return texts


@partial(jax.jit, static_argnums=0)
def _log_probs(networks: Networks, params: Any, batch: dict[str, Array], music: Array) -> Float[Array, "B L"]:
    llm, adapter, _ = bind(networks, *params)
    return token_log_probs(llm, adapter, batch, music)
