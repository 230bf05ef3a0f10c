"""The training loop: from a config to a finished run, or on from where a run was stopped.

Everything that a later step depends on is in the checkpoint, and every record of a step is on the disk before that
step's checkpoint is; an evaluation that a stop cut short is made up for. So a run that is killed at any moment resumes
to the very losses it would have had.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from mlingo_jax.data.rows import Batch
from mlingo_jax.data.unreadable import Unreadable, named
from mlingo_jax.errors import Stopped, UserError
from mlingo_jax.files import exclusive_lock
from mlingo_jax.processes import all_gather, is_primary
from mlingo_jax.runs.checkpoints import CheckpointState, restore
from mlingo_jax.runs.folder import CHECKPOINTS, TOWERS
from mlingo_jax.settings import Config
from mlingo_jax.training.checkpoint import Checkpoints, set_aside, to_host
from mlingo_jax.training.loss_monitor import LossMonitor
from mlingo_jax.training.optim import named_opt_state, with_opt_state
from mlingo_jax.training.plot import plot_losses
from mlingo_jax.training.preemption import PreemptionHandler
from mlingo_jax.training.profile import Profiler, profiled_steps
from mlingo_jax.training.progress import Progress
from mlingo_jax.training.record import Record
from mlingo_jax.training.run import changes_since, check_config, check_run, write_run
from mlingo_jax.training.setup import RunSetup, overview, set_up
from mlingo_jax.training.sharding import make_mesh, put_batch, replicate
from mlingo_jax.training.step import (
    METRICS,
    Metrics,
    Schedule,
    TrainState,
    compile_eval_step,
    compile_train_step,
    init_state,
)
from mlingo_jax.weights.checksum import weights_checksum

# Fields of a batch that stay on the host.
HOST_FIELDS = ("example", "unreadable")


def train(config: Config) -> None:
    """Trains an adapter; the result is in `config.workdir`. A workdir that holds this run already is resumed.

    Raises:
        UserError: for what the user can mend; what was saved until then stays.
        Stopped: a signal came, and the run was saved after the step that was being made.
    """
    workdir = Path(config.workdir)
    profiled_steps(config.profile_steps)
    check_config(config)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        setup = set_up(config, mesh)
        with _exclusive(workdir):
            _train(config, workdir, mesh, setup)


def _exclusive(workdir: Path) -> AbstractContextManager[None]:
    """The run's folder for this process alone; of the processes of one run, the first one speaks for all."""
    busy = f"{workdir}: another process is training in it; wait for it, or choose another --config.workdir"
    return exclusive_lock(workdir / ".lock", busy) if is_primary() else nullcontext()


def _train(config: Config, workdir: Path, mesh: Mesh, setup: RunSetup) -> None:
    check_run(workdir, setup.run)
    if is_primary():
        write_run(workdir, config, setup.run)
    saved = _restore(workdir, config.steps)
    first = saved.step if saved else 0
    examples, keep = config.batch_size * setup.row_examples, config.checkpoint
    with (
        Progress(first, config.steps, examples, setup.seconds, config.log.print_every) as progress,
        Record(workdir, after=first) as record,
        Checkpoints(workdir, keep=keep.keep, best=keep.keep_best, losses=record.evaluations) as checkpoints,
        PreemptionHandler(mesh) as stop,
    ):
        for line in [*overview(setup), *setup.notes]:
            progress.say(line)
        if saved:
            finished = first == config.steps
            progress.say(f"{workdir}: {'is finished' if finished else 'resuming'} after step {first} of {config.steps}")
            if changes := changes_since(workdir, setup.run):
                progress.say(f"since the run began {'; '.join(changes)}: losses may differ in their last digits")
        Loop(config, setup, mesh, record, progress, checkpoints, stop, saved).run()
    sums = prove_frozen(setup)
    progress.say(f"the frozen towers are unchanged: {', '.join(f'{n} {s[:16]}' for n, s in sums.items())}")
    if is_primary():
        progress.say(f"losses: {plot_losses(workdir)}")
        if best := best_evaluation(workdir, record.evaluations):
            progress.say(best)
    if config.demo is None:
        progress.say(
            f"ask it: python -m mlingo_jax.caption FILES --adapter {workdir} --question … --output answers.jsonl"
        )


def _restore(workdir: Path, last: int) -> CheckpointState | None:
    """The last good checkpoint of a run of so many steps, the same on all processes."""
    saved = restore(workdir)
    if saved and saved.step > last:
        raise UserError(
            f"{workdir}: its last checkpoint is after step {saved.step}, but config.steps is {last}; set it back"
        )
    steps = all_gather(saved.step if saved else 0)
    if len(set(steps)) > 1:
        raise UserError(
            f"{workdir}: the processes find its last checkpoint after different steps: {', '.join(map(str, steps))}; "
            "it must be one folder that all of them share"
        )
    # Not before all have read them.
    if saved and is_primary():
        set_aside(workdir, after=saved.step)
    return saved


class Loop:
    """The steps of one run, with what they write."""

    def __init__(
        self,
        config: Config,
        setup: RunSetup,
        mesh: Mesh,
        record: Record,
        progress: Progress,
        checkpoints: Checkpoints,
        stop: PreemptionHandler,
        saved: CheckpointState | None,
    ):
        self._config, self._setup, self._mesh = config, setup, mesh
        self._record, self._progress, self._checkpoints = record, progress, checkpoints
        self._stop, self._saved = stop, saved
        self._watch = LossMonitor(config.log.spike, saved.watch if saved else {})
        unreadable = saved.unreadable if saved else []
        self._unreadable = Unreadable(
            setup.clips, config.data.max_bad_fraction, progress.warn, unreadable, Path(config.workdir)
        )
        self._train_step = compile_train_step(
            setup.networks, Schedule(config.optim, config.steps, config.accumulate), mesh
        )
        self._eval_step = compile_eval_step(setup.networks, mesh)

    def run(self) -> None:
        """From the first step, or the one after a checkpoint, to the last.

        Raises:
            UserError: more losses than `config.max_skipped_steps` were not finite.
            Stopped: a signal came.
        """
        first = self._saved.step + 1 if self._saved else 1
        profiled = profiled_steps(self._config.profile_steps)
        if profiled and profiled[-1] < first:
            self._progress.say(f"profile_steps {self._config.profile_steps}: not traced, for step {first} is the next")
        # Of several processes, which do the same, one is enough.
        profiled = profiled if jax.process_index() == 0 else range(0)
        with Profiler(Path(self._config.workdir) / "profile", profiled) as profiler:
            self._run(first, profiler)
        self._checkpoints.wait()

    def _run(self, first: int, profiler: Profiler) -> None:
        config, frozen = self._config, self._setup.frozen
        state, batches = self._begin()
        # Fetched one step late: the host prepares and queues a step while the device computes the one before.
        waiting: tuple[int, Metrics, np.ndarray] | None = None
        for step in range(first, config.steps + 1):
            with self._progress.waiting():
                rows = next(batches)
            batch = self._put(rows)
            with jax.transfer_guard_host_to_device("disallow"), profiler.step(step):
                state, metrics = self._train_step(state, frozen, batch)
            traced = profiler.done(step, metrics)
            if waiting:
                self._note(*waiting)
            waiting = step, metrics, rows["example"]
            self._stop.listen()
            asked = self._stop.asked()
            evaluating = self._evaluates(step) and not asked
            due = _divides(config.checkpoint.every, step)
            if evaluating or due or asked:
                self._note(*waiting)
                waiting = None
            if evaluating:
                self._evaluate(step, state)
                asked = self._stop.asked()
            # What gives no number for a loss takes no good checkpoint's position.
            if asked or step == config.steps or (due and step not in self._watch.skipped):
                self._save(step, state, batches)
            if asked:
                self._checkpoints.wait()
                raise Stopped(
                    f"{config.workdir}: stopped by {asked.name} and saved after step {step} of {config.steps}; "
                    "the same command resumes from there",
                    asked,
                )
            if evaluating or due or traced:
                self._progress.interrupt()

    def _begin(self) -> tuple[TrainState, grain.DatasetIterator[Batch]]:
        saved = self._saved
        state, batches = init_state(self._setup.trained, self._config.optim), self._setup.train_batches()
        if not saved:
            return replicate(state, self._mesh), batches
        opt_state: Any = with_opt_state(state.opt_state, saved.optimizer["opt_state"])
        rest = saved.optimizer | {"opt_state": opt_state}
        state = TrainState(step=np.int32(saved.step), trained=saved.trained, **rest)
        batches.set_state(saved.data)
        state = replicate(state, self._mesh)
        if self._evaluates(saved.step) and saved.step not in self._record.evaluations:
            self._evaluate(saved.step, state)
        return state, batches

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        self._unreadable.note(batch)
        return put_batch({name: values for name, values in batch.items() if name not in HOST_FIELDS}, self._mesh)

    def _note(self, step: int, metrics: Metrics, example: np.ndarray) -> None:
        """Fetches a step's metrics, and writes and shows them, with the examples (their positions) if it stands out."""
        fetched = jax.device_get(metrics)
        values = {name: float(fetched[name]) for name in METRICS}
        self._progress.show(step, values)
        if _divides(self._config.log.every, step):
            self._record.write(step, values)
            self._record.board(step, self._progress.speed(step))
        remark = self._watch.see(step, values["loss"], values["gradient_norm"])
        if not remark:
            return
        positions = np.unique(process_allgather(example))
        examples = [self._setup.examples[int(position)] for position in positions[positions >= 0]]
        self._record.remark(step, {**remark, "examples": [e.clip for e in examples]})
        clips = named([f"{e.clip} ({e.where})" for e in examples])
        if "spike" in remark:
            above = f"{values['loss']:.4f} is {remark['spike']} deviations above the recent ones"
            self._progress.say(f"step {step}: the loss {above}: {clips}")
            return
        self._progress.say(f"step {step}: {remark['skipped']}, so the step is not applied: {clips}")
        skipped = self._watch.skipped
        if len(skipped) > self._config.max_skipped_steps:
            raise UserError(
                f"steps {', '.join(map(str, skipped))}: {remark['skipped']}, and more than config.max_skipped_steps = "
                f"{self._config.max_skipped_steps} such steps stop the run; metrics.jsonl names their clips, the last "
                "checkpoint stays. A lower optim.lr, optim.clip_norm, or float32 towers may help"
            )

    def _evaluates(self, step: int) -> bool:
        return step == self._config.steps or _divides(self._config.log.eval_every, step)

    def _evaluate(self, step: int, state: TrainState) -> None:
        """Records the loss over all held-out examples: its sum over the answers' tokens / their number.

        Not if there are none, or a stop is asked for meanwhile: it can take longer than who asks will wait.
        """
        sums: list[tuple[np.ndarray, np.ndarray]] = []
        waiting = None
        for batch in self._setup.eval_batches():
            queued = self._eval_step(state.trained, self._setup.frozen, self._put(batch))
            sums += [jax.device_get(waiting)] if waiting else []
            waiting = queued
            if self._stop.asked():
                return
        sums += [jax.device_get(waiting)] if waiting else []
        total, tokens = (math.fsum(float(pair[i]) for pair in sums) for i in (0, 1))
        if not tokens:
            return
        self._record.evaluation(step, total / tokens, tokens)
        self._progress.say(f"step {step}: held-out loss {total / tokens:.4f}")

    def _save(self, step: int, state: TrainState, batches: grain.DatasetIterator[Batch]) -> None:
        self._record.sync()
        optimizer = {
            "opt_state": named_opt_state(state.opt_state),
            "gradient": state.gradient,
            "token_count": state.token_count,
        }
        data = batches.get_state()
        unreadable = self._unreadable.share()
        saved = CheckpointState(step, to_host(state.trained), to_host(optimizer), data, self._watch.state, unreadable)
        towers = {name: self._setup.run[name]["identity"] for name in TOWERS.values()}
        self._checkpoints.save(saved, towers)


def best_evaluation(workdir: Path, evaluations: Mapping[int, float]) -> str | None:
    """A line on the lowest held-out loss of a run and its checkpoint; None if that is the last one's."""
    losses = {step: loss for step, loss in evaluations.items() if math.isfinite(loss)}
    best = min(losses, key=losses.__getitem__, default=None)
    if best is None or best == max(losses):
        return None
    folder = workdir / CHECKPOINTS / str(best)
    where = f"--adapter {folder}" if folder.is_dir() else "there is no checkpoint of it"
    return f"the held-out loss was lowest after step {best}, {losses[best]:.4f}: {where}"


def prove_frozen(setup: RunSetup) -> dict[str, str]:
    """The checksums of the towers on the devices; RuntimeError if one is not that of the tower as it was loaded."""
    sums = {name: weights_checksum(params) for name, params in setup.frozen.items()}
    for name, found in sums.items():
        expected = setup.run[TOWERS[name]]["identity"]["weights"]
        if found != expected:
            raise RuntimeError(f"{name}: the frozen tower has changed: its checksum was {expected}, is {found}")
    return sums


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
