"""The settings of a training run; the defaults are those of the reference implementation's fine-tuning."""

import dataclasses
from typing import Any


def setting(
    default: Any,
    meaning: str,
    *,
    least: int | float | None = None,
    most: int | float | None = None,
    choices: tuple[str, ...] = (),
    free: bool = False,
) -> Any:
    """A field with its meaning and its legal values; `free` ones may differ when a run is resumed."""
    metadata = {"meaning": meaning, "least": least, "most": most, "choices": choices, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


DTYPES = ("bfloat16", "float32")
QUANTIZATIONS = ("none", "int8", "int4")
REMATS = ("layer", "dots", "none")
MIXDOWNS = ("mean", "left")
MIXINGS = ("row", "step")
RESAMPLINGS = ("soxr", "sinc_hann")


@dataclasses.dataclass
class EncoderConfig:
    """The frozen encoder."""

    path: str = setting("", "encoder: a Hugging Face or converted folder, or a hub id", free=True)
    dtype: str = setting("bfloat16", "what its weights are kept and computed in", choices=DTYPES)
    frames_per_token: int = setting(325, "encoder frames averaged into one music token (of MERT's, 4.33 s)", least=1)
    resampling: str = setting("soxr", "of audio: by soxr, or exactly as torchaudio does", choices=RESAMPLINGS)


@dataclasses.dataclass
class LanguageModelConfig:
    """The frozen language model."""

    path: str = setting("", "language model: a Hugging Face or converted folder, or a hub id", free=True)
    dtype: str = setting("bfloat16", "what its weights are kept and computed in", choices=DTYPES)
    quantization: str = setting("none", "its layers' weights as integers of 8 or 4 bits", choices=QUANTIZATIONS)
    remat: str = setting(
        "layer", "recomputed in the backward pass: whole layers, all but products, nothing", choices=REMATS, free=True
    )


@dataclasses.dataclass
class AdapterSettings:
    """The trained part, always float32."""

    start: str = setting("", "begin from this adapter (.pth, .safetensors, converted folder or run); empty: at random")
    layer_weights: bool = setting(False, "learn a softmax weight per hidden state of the encoder instead of their mean")


@dataclasses.dataclass
class PromptConfig:
    """How a question and its answer become a row of tokens."""

    template: str = setting("###Human: {} ###Assistant: ", "around music and question; empty: no prompt (stage 1)")
    end_symbol: str = setting("###", "what the model learns to end its answer with")
    stop: str = setting("", "text that ends a generated answer; empty: the end symbol")
    max_answer_tokens: int = setting(160, "longer answers (end symbol included) are cut", least=1)


@dataclasses.dataclass
class DataConfig:
    """The examples."""

    manifest: str = setting(
        "", "jsonl, json or csv of audio, question, answer; split (train or eval) if wanted", free=True
    )
    datasets: str = setting(
        "", "instead of a manifest: prepared DATASET:SPLIT, …; with =WEIGHT, or *WEIGHT of each example"
    )
    evaluate: str = setting("", "with datasets: DATASET:SPLIT to evaluate on; empty: no evaluation")
    data_dir: str = setting("data", "folder of the prepared datasets", free=True)
    mixing: str = setting("row", "several datasets: in each micro-batch (row) or in turn (step)", choices=MIXINGS)
    eval_most: int = setting(0, "examples to evaluate on at most; 0: all that are held out", least=0)
    eval_share: float = setting(0.05, "clips held out where the manifest names no split", least=0, most=0.5)
    length: int = setting(0, "tokens in a row, music and padding included; 0: as the longest example needs", least=0)
    packed: bool = setting(False, "several examples in a row; batch_size then counts rows; not with encode_in_step")
    encode_in_step: bool = setting(False, "encode the audio in every step instead of once into a feature cache")
    crops: int = setting(0, "fixed crops of each clip, one at random for each row; 0: see crop_seconds", least=0)
    crop_seconds: float = setting(
        30.5, "of a crop; with encode_in_step and no fixed crops a new one each time, else clips are whole", least=1
    )
    crop_seed: int = setting(0, "which fixed crops", least=0)
    like_the_original: bool = setting(
        False, "cut fixed crops as MusiLingo's MusicQA loader does: before resampling, zeros behind, not normalised"
    )
    max_bad_fraction: float = setting(
        0.0, "share of clips that may be unreadable; they are left out", least=0, most=1, free=True
    )
    features: str = setting("", "feature cache; empty: features/ in DATA_DIR (datasets) or WORKDIR", free=True)
    store: str = setting("float32", "what features are kept as in the cache; bfloat16: half of it", choices=DTYPES)
    mixdown: str = setting("mean", "of a clip's channels their mean, or the first one (left)", choices=MIXDOWNS)


@dataclasses.dataclass
class OptimConfig:
    """AdamW and its learning rate (see mlingo_jax/training/optim.py for the curve)."""

    lr: float = setting(3e-5, "learning rate at the top of the warm-up and the start of the cosine", least=0)
    min_lr: float = setting(1e-5, "learning rate at the end of the cosine", least=0)
    warmup_lr: float = setting(1e-6, "learning rate at step 0", least=0)
    warmup_steps: int = setting(5000, "steps of linear warm-up", least=0)
    epoch_steps: int = setting(5000, "steps after which the warm-up's ramp starts anew; 0: never", least=0)
    weight_decay: float = setting(0.05, "decoupled weight decay, on matrices only", least=0)
    beta1: float = setting(0.9, "decay of the first moment", least=0, most=1)
    beta2: float = setting(0.999, "decay of the second moment", least=0, most=1)
    eps: float = setting(1e-8, "added to the root of the second moment", least=0)
    clip_norm: float = setting(0.0, "scale gradients of a larger norm down to this one; 0: never", least=0)


@dataclasses.dataclass
class CheckpointConfig:
    """Checkpoints: how often, and how many are kept."""

    every: int = setting(1000, "steps between checkpoints; the last step always gets one", least=1, free=True)
    keep: int = setting(3, "checkpoints kept, the newest ones", least=1, free=True)
    keep_best: int = setting(1, "besides, those with the lowest held-out loss", least=0, free=True)


@dataclasses.dataclass
class LogConfig:
    """What is written down of a run."""

    every: int = setting(1, "steps between records in metrics.jsonl and TensorBoard", least=1, free=True)
    print_every: int = setting(50, "steps between lines where no terminal shows a bar", least=1, free=True)
    eval_every: int = setting(1000, "steps between evaluations; 0: at the end only", least=0, free=True)
    eval_answers: int = setting(4, "held-out questions answered at each evaluation; 0: none", least=0, free=True)
    spike: float = setting(8.0, "name a step's clips if its loss is so many deviations too high", least=0, free=True)


@dataclasses.dataclass
class MeshConfig:
    """The devices' grid."""

    data: int = setting(-1, "devices along the batch; -1: all that are left", least=-1, free=True)
    fsdp: int = setting(1, "devices that share the towers' width, and the batch too", least=1, free=True)
    tensor: int = setting(1, "devices that share heads, inner width and vocabulary", least=1, free=True)


@dataclasses.dataclass
class DemoConfig:
    """What the demo makes before it trains."""

    materials: str = setting("runs/demo-materials", "folder of the clips and models that the demo makes")
    seed: int = setting(0, "of the music, the texts and both towers", least=0)
    seconds: float = setting(5.0, "length of a clip", least=3, most=20)
    train_takes: int = setting(6, "clips to train on for each of the 144 kinds of piece", least=1)
    held_out_takes: int = setting(2, "clips to ask about for each kind, never seen in training", least=1)
    instruments: int = setting(8, "how many of the eight instruments play", least=2, most=8)
    llm_steps: int = setting(150, "steps in which the language model learns to read and to answer", least=1)


@dataclasses.dataclass
class Config:
    """A training run. A step is one micro-batch; the adapter is updated every `accumulate` steps."""

    workdir: str = setting("runs/base", "folder of the run; one that holds a run is resumed", free=True)
    seed: int = setting(42, "of everything that is random: adapter, order of the examples, crops", least=0)
    dry_run: bool = setting(False, "show the settings, the data and the first batch, and stop", free=True)
    steps: int = setting(30_000, "micro-batches in the whole run", least=1)
    batch_size: int = setting(2, "examples in a micro-batch, over all devices", least=1)
    accumulate: int = setting(16, "micro-batches whose gradients make one update", least=1)
    max_skipped_steps: int = setting(10, "stop after more steps than this without a finite loss", least=0, free=True)
    profile_steps: str = setting("", "FIRST,LAST: trace these steps into WORKDIR/profile", free=True)
    mert: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    llm: LanguageModelConfig = dataclasses.field(default_factory=LanguageModelConfig)
    adapter: AdapterSettings = dataclasses.field(default_factory=AdapterSettings)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    demo: Any = dataclasses.field(default=None, metadata={"meaning": "settings of the demo; none: no demo"})
