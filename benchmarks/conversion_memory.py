"""Peak memory of a conversion there and back, for a language model of about 1.2 billion random parameters.

    python -m benchmarks.conversion_memory [--folder SCRATCH]

The model has LLaMA-3.2-1B's shapes, in bfloat16 (2.5 GB), once as one safetensors file and once as three `.bin` shards;
four times that is needed on the disk. Each conversion runs in a process of its own; its peak is the kernel's VmHWM,
pages of mapped files included (Linux only). The bound is the largest source shard plus 1 GB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from mlingo_jax.files import write_json
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.weights.checkpoints import weight_files, write_checkpoint
from mlingo_jax.weights.keymap import Shape, entries, parameters
from mlingo_jax.weights.llama import RULES
from mlingo_jax.weights.tensors import Tensor
from mlingo_jax.weights.torch_files import write_torch

CONFIG = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
SHARDS = 3
ROOT = Path(__file__).parents[1]
GB = 10**9
# A command's main in a fresh process, and then the most memory that process ever held.
MEASURED = """
import importlib, sys
importlib.import_module(f"conversion.{sys.argv[1]}").main(sys.argv[2:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def random_tensors() -> dict[str, Tensor]:
    """A checkpoint that is drawn as it is read."""
    config = LlamaConfig.from_json(CONFIG, "benchmark")
    model = nnx.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)

    def draw(shape: Shape) -> np.ndarray:
        return (rng.random(shape, np.float32) + 0.5).astype(ml_dtypes.bfloat16)

    dtype = np.dtype(ml_dtypes.bfloat16)
    return {
        e.torch: Tensor(e.torch_shape, dtype, lambda shape=e.torch_shape: draw(shape))
        for e in entries(RULES, parameters(model))
    }


def make(folder: Path, layout: str) -> None:
    """Writes the model as a Hugging Face folder."""
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    tensors = random_tensors()
    if layout == "safetensors":
        write_checkpoint(folder, tensors, shard_bytes=sum(t.nbytes for t in tensors.values()), title="make")
        return
    names = sorted(tensors)
    weight_map = {name: f"pytorch_model-{i * SHARDS // len(names)}.bin" for i, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        write_torch(folder / file, {"model": {name: tensors[name] for name in names if weight_map[name] == file}})
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": weight_map})


def measure(command: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds, and peak memory in GB, of a conversion."""
    start = time.perf_counter()
    arguments = [sys.executable, "-c", MEASURED, command, str(source), str(target)]
    output = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return time.perf_counter() - start, int(output.split()[-1]) * 1024 / GB


def measurements(scratch: Path, layout: str) -> Iterator[str]:
    """Lines of the table for one layout of the source."""
    make(scratch / "torch", layout)
    for command, source, target in (("to_jax", "torch", "jax"), ("to_pytorch", "jax", "back")):
        shard = max(file.stat().st_size for file in weight_files(scratch / source)) / GB
        seconds, peak = measure(command, scratch / source, scratch / target)
        verdict = "under the bound" if peak <= shard + 1 else "OVER THE BOUND"
        yield f"| {layout} | {command} | {shard:.2f} | {shard + 1:.2f} | {peak:.2f} | {seconds:.0f} | {verdict} |"


def main() -> None:
    """Prints a table, and exits with 1 if a peak is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="scratch folder for 10 GB; default: the system's temporary folder")
    arguments = parser.parse_args()
    print("| source | command | largest shard, GB | bound, GB | peak, GB | seconds | |\n|---|---|---|---|---|---|---|")
    lines: list[str] = []
    for layout in ("safetensors", "bin"):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            for line in measurements(Path(scratch), layout):
                print(line, flush=True)
                lines.append(line)
    sys.exit(any("OVER" in line for line in lines))


if __name__ == "__main__":
    main()
