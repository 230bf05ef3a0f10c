"""The training loop: from a config to a finished run, or on from where a run was stopped.

Everything that a later step depends on is in the checkpoint, and every record of a step is on the disk before that
step's checkpoint is. So a run that is killed at any moment goes on to the very losses it would have had.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from configs.base import Config
from conversion.checksum import weights_checksum
from mlingo_jax.data.lock import alone
from mlingo_jax.data.rows import Batch
from mlingo_jax.data.unheard import Unheard
from mlingo_jax.errors import UserError
from mlingo_jax.training.assemble import Assembly, assemble, overview
from mlingo_jax.training.checkpoint import Checkpoints, Saved, restore, to_host
from mlingo_jax.training.optim import named_moments, with_moments
from mlingo_jax.training.plot import plot_losses
from mlingo_jax.training.progress import Progress
from mlingo_jax.training.record import Record
from mlingo_jax.training.run import changes_since, check_config, check_run, write_run
from mlingo_jax.training.sharding import make_mesh, put_batch, replicate
from mlingo_jax.training.step import METRICS, Metrics, TrainState, compile_eval_step, compile_train_step, init_state

# Fields of a batch that stay on the host.
HOST_FIELDS = ("example", "unheard")


def train(config: Config) -> None:
    """Trains an adapter; the result is in `config.workdir`. A workdir that holds this run already is taken up again.

    Raises:
        UserError: for what the user can mend; what was saved until then stays.
    """
    workdir = Path(config.workdir)
    check_config(config)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        assembly = assemble(config, mesh)
        with _alone(workdir):
            _train(config, workdir, mesh, assembly)


def _alone(workdir: Path) -> AbstractContextManager[None]:
    """The run's folder for this process alone; of the processes of one run, the first one speaks for all."""
    busy = f"{workdir}: another process is training in it; wait for it, or choose another --config.workdir"
    return alone(workdir / ".lock", busy) if jax.process_index() == 0 else nullcontext()


def _train(config: Config, workdir: Path, mesh: Mesh, assembly: Assembly) -> None:
    check_run(workdir, assembly.run)
    write_run(workdir, config, assembly.run)
    saved = restore(workdir, remove_damaged=True)
    first = saved.step if saved else 0
    examples = config.batch_size * assembly.row_examples
    with (
        Progress(first, config.steps, examples, assembly.seconds, config.log.print_every) as progress,
        Record(workdir, after=first) as record,
        Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints,
    ):
        for line in [*overview(assembly), *assembly.notes]:
            progress.say(line)
        if saved:
            finished = first == config.steps
            progress.say(f"{workdir}: {'is finished' if finished else 'going on'} after step {first} of {config.steps}")
            if changes := changes_since(workdir, assembly.run):
                progress.say(f"since the run began {'; '.join(changes)}: losses may differ in their last digits")
        Loop(config, assembly, mesh, record, progress, checkpoints).run(saved)
    sums = prove_frozen(assembly)
    progress.say(f"the frozen towers are unchanged: {', '.join(f'{n} {s[:16]}' for n, s in sums.items())}")
    progress.say(f"losses: {plot_losses(workdir)}")
    if config.demo is None:
        progress.say(
            f"ask it: python -m mlingo_jax.caption FILES --adapter {workdir} --question … --output answers.jsonl"
        )


class Loop:
    """The steps of one run, with what they write."""

    def __init__(
        self,
        config: Config,
        assembly: Assembly,
        mesh: Mesh,
        record: Record,
        progress: Progress,
        checkpoints: Checkpoints,
    ):
        self._config, self._assembly, self._mesh = config, assembly, mesh
        self._record, self._progress, self._checkpoints = record, progress, checkpoints
        self._unheard = Unheard(assembly.clips, config.data.max_bad_fraction, progress.say)
        self._train_step = compile_train_step(assembly.networks, config, mesh)
        self._eval_step = compile_eval_step(assembly.networks, config, mesh)

    def run(self, saved: Saved | None) -> None:
        """From the first step, or the one after a checkpoint, to the last."""
        config, frozen = self._config, self._assembly.frozen
        state, batches = self._begin(saved)
        # Fetched one step late: the host prepares and queues a step while the device computes the one before.
        waiting: tuple[int, Metrics] | None = None
        for step in range(saved.step + 1 if saved else 1, config.steps + 1):
            batch = self._put(next(batches))
            with jax.transfer_guard_host_to_device("disallow"):
                state, metrics = self._train_step(state, frozen, batch)
            if waiting:
                self._note(*waiting)
            waiting = step, metrics
            last = step == config.steps
            evaluating = last or _divides(config.log.eval_every, step)
            saving = last or _divides(config.checkpoint.every, step)
            if evaluating or saving:
                self._note(*waiting)
                waiting = None
            if evaluating:
                self._evaluate(step, state)
            if saving:
                self._save(step, state, batches)
            if evaluating or saving:
                self._progress.interrupt()
        self._checkpoints.wait()

    def _begin(self, saved: Saved | None) -> tuple[TrainState, grain.DatasetIterator[Batch]]:
        state, batches = init_state(self._assembly.adapter, self._config), self._assembly.train_batches()
        if saved:
            moments: Any = with_moments(state.moments, saved.optimizer["moments"])
            rest = saved.optimizer | {"moments": moments}
            state = TrainState(step=np.int32(saved.step), adapter=saved.adapter, **rest)
            batches.set_state(saved.data)
        return replicate(state, self._mesh), batches

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        self._unheard.note(batch)
        return put_batch({name: values for name, values in batch.items() if name not in HOST_FIELDS}, self._mesh)

    def _note(self, step: int, metrics: Metrics) -> None:
        """Fetches a step's metrics, and writes and shows them."""
        fetched = jax.device_get(metrics)
        values = {name: float(fetched[name]) for name in METRICS}
        if bad := [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise UserError(
                f"step {step}: {', '.join(bad)}, so the run stops; its last checkpoint stays. "
                "A lower optim.lr, optim.clip_norm, or float32 towers may help"
            )
        self._progress.show(step, values)
        if _divides(self._config.log.every, step):
            self._record.write(step, values)
            self._record.board(step, self._progress.speed(step))

    def _evaluate(self, step: int, state: TrainState) -> None:
        """The loss over all held-out examples: its sum over the answers' tokens / their number."""
        sums = [
            self._eval_step(state.adapter, self._assembly.frozen, self._put(batch))
            for batch in self._assembly.eval_batches()
        ]
        if not sums:
            return
        total, tokens = (math.fsum(map(float, column)) for column in zip(*jax.device_get(sums), strict=True))
        self._record.write(step, {"eval_loss": total / tokens, "eval_tokens": tokens})
        self._progress.say(f"step {step}: held-out loss {total / tokens:.4f}")

    def _save(self, step: int, state: TrainState, batches: grain.DatasetIterator[Batch]) -> None:
        self._record.sync()
        optimizer = {"moments": named_moments(state.moments), "gradient": state.gradient, "weight": state.weight}
        saved = Saved(step, to_host(state.adapter), to_host(optimizer), batches.get_state())
        self._checkpoints.save(saved, {name: self._assembly.run[name]["identity"] for name in ("mert", "llm")})


def prove_frozen(assembly: Assembly) -> dict[str, str]:
    """The checksums of the towers on the devices; RuntimeError if one is not that of the tower as it was loaded."""
    sums = {name: weights_checksum(params) for name, params in assembly.frozen.items()}
    for name, found in sums.items():
        expected = assembly.run[name]["identity"]["weights"]
        if found != expected:
            raise RuntimeError(f"{name}: the frozen tower has changed: its checksum was {expected}, is {found}")
    return sums


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
