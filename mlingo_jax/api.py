"""The Python interface: `mlingo_jax.load` gives a model that encodes clips, scores answers and answers questions.

Axes: K music features of a clip, S hidden states, D encoder width.
"""

import dataclasses
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.decoding import Mixdown
from mlingo_jax.data.prompt import Prompt, PromptSettings, Question, open_prompt, read_context
from mlingo_jax.data.resampling import Resampling
from mlingo_jax.data.statistics import round_up
from mlingo_jax.errors import UserError
from mlingo_jax.features.encode import AudioEncoder
from mlingo_jax.inference.answering import asking, in_order, run, text
from mlingo_jax.inference.beams import Beams
from mlingo_jax.inference.clips import Clip, Music, distinct, encoded, music_of, one_each, require_list
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Answer, Options
from mlingo_jax.inference.likelihood import Asked, answer_log_probs
from mlingo_jax.inference.prompts import about_clip, salt_of
from mlingo_jax.inference.requests import Request
from mlingo_jax.inference.writing import open_writer
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.sources import find_sources
from mlingo_jax.training.run import require_towers
from mlingo_jax.weights.load import Tower, fit_adapter, load_adapter, load_tower

R = TypeVar("R")

# Lengths that are warned of are rounded up to a multiple.
WARNED_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, repr=False)
class MusiLingo:
    """A frozen encoder, a trained adapter and a frozen language model; made by `load`.

    A clip is an audio file's path, (waveform, sample rate), or the music features that `encode` gave of it. A question
    is a text, or a `Question`, which has what was asked and answered before it. Lists go together: clip i, question i,
    answer i; one question given alone is asked about every clip.
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
        require_list(clips)
        kept, places = distinct(clips)
        features = [_require(music).features for music in encoded(kept, self.encoder)]
        return [features[place] for place in places]

    def score(
        self, clips: Sequence[Clip], questions: str | Question | Sequence[str | Question], answers: Sequence[str]
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
        questions, answers = one_each(clips, questions, "questions"), one_each(clips, answers, "answers")
        features = self.encode(clips)
        rows = self.prompt.rows([(q, a, f.shape[-2]) for q, a, f in zip(questions, answers, features, strict=True)])
        self._check_context(max(len(row.tokens) for row in rows))
        # Several answers to one question about one clip are scored behind one reading of it.
        groups: dict[tuple[int, str | Question], list[int]] = {}
        for i, (f, question) in enumerate(zip(features, questions, strict=True)):
            groups.setdefault((id(f), question), []).append(i)
        asked = [Asked(features[g[0]], questions[g[0]], tuple(answers[i] for i in g)) for g in groups.values()]
        scores = answer_log_probs(self._networks, self._params, self.prompt, asked, mesh=self.mesh)
        found = {i: s for g, some in zip(groups.values(), scores, strict=True) for i, s in zip(g, some, strict=True)}
        return [found[i] for i in range(len(features))]

    def answer(
        self,
        clips: Sequence[Clip],
        questions: str | Question | Sequence[str | Question],
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
        A draw depends on the seed, the clip and the question, not on the other rows; a clip that is given as features
        is told by these, and draws otherwise than its file does.

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
        self,
        clips: Sequence[Clip],
        questions: str | Question | Sequence[str | Question],
        options: Options | None = None,
        *,
        seed: int = 0,
    ) -> list[Answer]:
        """What `answer` gives, with each answer's tokens and the reason why it ended.

        Example:
            >>> (answer,) = model.generate(["song.wav"], "What plays?", Options(max_new_tokens=8))
            >>> answer.finish_reason in ("stop", "eos", "length"), len(answer.tokens) <= 8
            (True, True)
        """
        questions = one_each(clips, questions, "questions")
        kept, places = distinct(clips)
        of_clip: list[list[int]] = [[] for _ in kept]
        for question, place in enumerate(places):
            of_clip[place].append(question)
        asked = [(clip, [questions[i] for i in some]) for clip, some in zip(kept, of_clip, strict=True)]
        found: dict[int, Answer] = {}
        for some, given in zip(of_clip, self.ask(asked, options, seed=seed), strict=True):
            found |= zip(some, _require(given), strict=True)
        return [found[i] for i in range(len(questions))]

    def ask(
        self,
        asked: Iterable[tuple[Clip, str | Question | Sequence[str | Question]]],
        options: Options | None = None,
        *,
        seed: int = 0,
        rows: int | None = None,
    ) -> Iterator[list[Answer] | UserError]:
        """Many questions about many clips: gives each clip's answers, in turn, as soon as they are there.

        A clip is encoded once, and the language model reads its music once for all its questions. Clips are read ahead
        and encoded some at a time: memory does not grow with their number, and `asked` may be a generator.
        In place of the answers about a clip that cannot be read, or for which the language model's numbers overflow,
        comes a `UserError`; the others go on.

        Args:
            asked: clips, each with its questions.
            options: how answers are written.
            seed: of the draws.
            rows: answers written at once; by default what the devices' memory holds. No answer depends on it.
        """
        options = options or Options()
        at_most = sum(len(_listed(questions)) for _, questions in asked) if isinstance(asked, Sequence) else None
        scripts = map(asking, self._requests(asked, options, seed))
        yield from in_order(run(self.writer(options, rows=rows, at_most=at_most), scripts))

    def stream(
        self,
        clip: Clip,
        question: str | Question,
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
        (requests,) = self._requests([(clip, [question])], options, seed)
        (request,) = _require(requests)
        yield from text(self.writer(options, at_most=1), request)

    def request(
        self, music: Music | Float[np.ndarray, "..."], question: str | Question, options: Options, *, seed: int = 0
    ) -> Request:
        """A question for a `writer`, about music as `encode` gives it.

        Warns if its row, with as many new tokens as it may have, is longer than the language model was made for.
        """
        music = music if isinstance(music, Music) else music_of(music, self.encoder)
        salt = salt_of(question, music.digest)
        request = about_clip(self.prompt, question, music.features, options, clip=music.digest, salt=salt, seed=seed)
        prompt = len(self.prompt.opening) + len(request.prefix.tokens) + len(request.question.tokens)
        self._check_context(prompt + options.max_new_tokens)
        return request

    def writer(self, options: Options, *, rows: int | None = None, at_most: int | None = None) -> Engine | Beams:
        """What answers requests: an engine, or for several beams, a search.

        Args:
            options: those of the requests that will come; an engine takes others too.
            rows: answers written at once; by default what the devices' memory holds.
            at_most: as many requests as will come at all, if that is known.
        """
        return open_writer(
            self.llm, self._networks, self._params, self.prompt, options, rows=rows, at_most=at_most, mesh=self.mesh
        )

    def __repr__(self) -> str:
        widths = f"{self.encoder.config.embed_dim} to {self.llm.config.embed_dim}"
        return f"MusiLingo(llm {self.llm.identity['name']}, {self.llm.identity['dtype']}, adapter {widths})"

    def _requests(
        self, asked: Iterable[tuple[Clip, str | Question | Sequence[str | Question]]], options: Options, seed: int
    ) -> Iterator[list[Request] | UserError]:
        """Each clip's requests, or why it cannot be read."""
        of_clip: deque[Sequence[str | Question]] = deque()

        def clips() -> Iterator[Clip]:
            for clip, questions in asked:
                of_clip.append(_listed(questions))
                yield clip

        for music in encoded(clips(), self.encoder):
            questions = of_clip.popleft()
            if isinstance(music, UserError):
                yield music
            else:
                yield [self.request(music, question, options, seed=seed) for question in questions]

    @cached_property
    def context(self) -> int | None:
        """How many tokens the language model was made for, if its folder says."""
        return read_context(self.llm.folder)

    def _check_context(self, tokens: int) -> None:
        """Warns of a row of so many tokens if it is longer than the language model was made for."""
        context = self.context
        if context is not None and tokens > context:
            # Rounded up: of many rows, each a little longer, not every one has to be told.
            warnings.warn(
                f"rows of up to {round_up(tokens, WARNED_MULTIPLE):,} tokens, answers included, are longer than the "
                f"{context:,} that {self.llm.folder} was made for (its max_position_embeddings): expect poor answers "
                "past these; give shorter clips or a lower max_new_tokens",
                stacklevel=3,
            )

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


def _listed(questions: str | Question | Sequence[str | Question]) -> Sequence[str | Question]:
    return [questions] if isinstance(questions, str | Question) else questions


def _require(result: R | UserError) -> R:
    if isinstance(result, UserError):
        raise result
    return result
