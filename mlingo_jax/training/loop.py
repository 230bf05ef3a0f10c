"""The training loop: from a config to a finished run, or on from where a run was stopped.

Everything that a later step depends on is in the checkpoint, and every record of a step is on the disk before that
step's checkpoint is; an evaluation that a stop cut short is made up for. So a run that is killed at any moment resumes
to the very losses it would have had.
"""

import dataclasses
import math
import signal
from collections.abc import Iterator, Mapping
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
from mlingo_jax.training.held_out_answers import shown
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
    first, log, keep = saved.step if saved else 0, config.log, config.checkpoint
    examples = config.batch_size * setup.batches.layout.row_examples
    with (
        Progress(first, config.steps, examples, setup.seconds, log.print_every) as progress,
        Record(workdir, after=first) as record,
        Checkpoints(workdir, keep=keep.keep, best=keep.keep_best, losses=record.evaluations) as checkpoints,
        PreemptionHandler(mesh) as preemption,
        Profiler(workdir / "profile", _profiled(config.profile_steps, first, progress)) as profiler,
    ):
        _say_what_begins(setup, saved, workdir, config.steps, progress)
        clips, known = len(setup.batches.data.statistics.clips), saved.unreadable if saved else []
        guards = Guards(
            preemption,
            LossMonitor(log.spike, saved.watch if saved else {}),
            Unreadable(clips, config.data.max_bad_fraction, progress.warn, known, workdir),
            config.max_skipped_steps,
        )
        schedule = Schedule(config.optim, config.steps, config.accumulate)
        cadence = Cadence(log=log.every, evaluate=log.eval_every, save=keep.every)
        Loop(setup, mesh, schedule, cadence, Outputs(workdir, record, progress, checkpoints, profiler), guards).run(
            saved
        )
    _say_what_came(setup, workdir, record, progress)
    if config.demo is None:
        progress.say(
            f"ask it: python -m mlingo_jax.caption FILES --adapter {workdir} --question … --output answers.jsonl"
        )


def _profiled(steps: str, first: int, progress: Progress) -> range:
    """The steps to trace, of a run that goes on after step `first`; of several processes, which do the same, one does.

    Says so if none of them is still to come.
    """
    profiled = profiled_steps(steps)
    if profiled and profiled[-1] <= first:
        progress.say(f"profile_steps {steps}: not traced, for step {first + 1} is the next")
    return profiled if jax.process_index() == 0 else range(0)


def _say_what_begins(
    setup: RunSetup, saved: CheckpointState | None, workdir: Path, steps: int, progress: Progress
) -> None:
    for line in [*overview(setup), *setup.notes]:
        progress.say(line)
    if saved:
        state = "is finished" if saved.step == steps else "resuming"
        progress.say(f"{workdir}: {state} after step {saved.step} of {steps}")
        if changes := changes_since(workdir, setup.run):
            progress.say(f"since the run began {'; '.join(changes)}: losses may differ in their last digits")


def _say_what_came(setup: RunSetup, workdir: Path, record: Record, progress: Progress) -> None:
    sums = prove_frozen(setup)
    progress.say(f"the frozen towers are unchanged: {', '.join(f'{n} {s[:16]}' for n, s in sums.items())}")
    if is_primary():
        progress.say(f"losses: {plot_losses(workdir)}")
        if best := best_evaluation(workdir, record.evaluations):
            progress.say(best)


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


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Every how many steps a record, an evaluation (0: at the end alone) and a checkpoint are due."""

    log: int
    evaluate: int
    save: int


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a run writes and shows, into its folder."""

    workdir: Path
    record: Record
    progress: Progress
    checkpoints: Checkpoints
    profiler: Profiler


@dataclasses.dataclass(frozen=True)
class Guards:
    """What may stop a run, and remarks on steps: signals, losses that stand out, clips that cannot be read.

    max_skipped_steps: more steps than so many without a finite loss stop it.
    """

    preemption: PreemptionHandler
    monitor: LossMonitor
    unreadable: Unreadable
    max_skipped_steps: int


class Loop:
    """The steps of one run."""

    def __init__(
        self, setup: RunSetup, mesh: Mesh, schedule: Schedule, cadence: Cadence, outputs: Outputs, guards: Guards
    ):
        self._setup, self._mesh, self._schedule, self._cadence = setup, mesh, schedule, cadence
        self._outputs, self._guards = outputs, guards
        self._train_step = compile_train_step(setup.networks, schedule, mesh)
        self._eval_step = compile_eval_step(setup.networks, mesh)

    def run(self, saved: CheckpointState | None) -> None:
        """From the first step, or the one after a checkpoint, to the last.

        Raises:
            UserError: more losses than `max_skipped_steps` were not finite.
            Stopped: a signal came.
        """
        state, batches = self._begin(saved)
        steps, progress, profiler = self._schedule.steps, self._outputs.progress, self._outputs.profiler
        # Fetched one step late: the host prepares and queues a step while the device computes the one before.
        waiting: tuple[int, Metrics, np.ndarray] | None = None
        for step in range(saved.step + 1 if saved else 1, steps + 1):
            with progress.waiting():
                rows = next(batches)
            batch = self._put(rows)
            with jax.transfer_guard_host_to_device("disallow"), profiler.step(step):
                state, metrics = self._train_step(state, self._setup.frozen, batch)
            traced = profiler.done(step, metrics)
            if waiting:
                self._note(*waiting)
            waiting = step, metrics, rows["example"]
            self._guards.preemption.listen()
            asked = self._guards.preemption.asked()
            if asked or self._evaluates(step) or _divides(self._cadence.save, step):
                self._note(*waiting)
                waiting, traced = None, True
                self._between(step, state, batches, asked)
            if traced:
                progress.interrupt()
        self._outputs.checkpoints.wait()

    def _between(
        self, step: int, state: TrainState, batches: grain.DatasetIterator[Batch], asked: signal.Signals | None
    ) -> None:
        """Between two steps: an evaluation and a checkpoint, if they are due; the end, if a signal asked for it."""
        if self._evaluates(step) and not asked:
            self._evaluate(step, state)
            asked = self._guards.preemption.asked()
        due = _divides(self._cadence.save, step) and step not in self._guards.monitor.skipped
        # What gives no number for a loss takes no good checkpoint's position.
        if asked or due or step == self._schedule.steps:
            self._save(step, state, batches)
        if asked:
            self._outputs.checkpoints.wait()
            raise Stopped(
                f"{self._outputs.workdir}: stopped by {asked.name} and saved after step {step} of "
                f"{self._schedule.steps}; the same command resumes from there",
                asked,
            )

    def _begin(self, saved: CheckpointState | None) -> tuple[TrainState, grain.DatasetIterator[Batch]]:
        state, batches = init_state(self._setup.trained, self._schedule.optim), self._setup.batches.train()
        if not saved:
            return replicate(state, self._mesh), batches
        opt_state: Any = with_opt_state(state.opt_state, saved.optimizer["opt_state"])
        rest = saved.optimizer | {"opt_state": opt_state}
        state = TrainState(step=np.int32(saved.step), trained=saved.trained, **rest)
        batches.set_state(saved.data)
        state = replicate(state, self._mesh)
        if self._evaluates(saved.step) and saved.step not in self._outputs.record.evaluations:
            self._evaluate(saved.step, state)
        return state, batches

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        self._guards.unreadable.note(batch)
        return put_batch({name: values for name, values in batch.items() if name not in HOST_FIELDS}, self._mesh)

    def _note(self, step: int, metrics: Metrics, example: np.ndarray) -> None:
        """Fetches a step's metrics, and writes and shows them, with the examples (their positions) if it stands out."""
        fetched = jax.device_get(metrics)
        values = {name: float(fetched[name]) for name in METRICS}
        self._outputs.progress.show(step, values)
        if _divides(self._cadence.log, step):
            self._outputs.record.write(step, values)
            self._outputs.record.board(step, self._outputs.progress.speed(step))
        remark = self._guards.monitor.see(step, values["loss"], values["gradient_norm"])
        if not remark:
            return
        positions = np.unique(process_allgather(example))
        examples = [self._setup.batches.data.train[int(position)] for position in positions[positions >= 0]]
        self._outputs.record.remark(step, {**remark, "examples": [e.clip for e in examples]})
        clips = named([f"{e.clip} ({e.where})" for e in examples])
        if "spike" in remark:
            above = f"{values['loss']:.4f} is {remark['spike']} deviations above the recent ones"
            self._outputs.progress.say(f"step {step}: the loss {above}: {clips}")
            return
        self._outputs.progress.say(f"step {step}: {remark['skipped']}, so the step is not applied: {clips}")
        skipped = self._guards.monitor.skipped
        if len(skipped) > self._guards.max_skipped_steps:
            raise UserError(
                f"steps {', '.join(map(str, skipped))}: {remark['skipped']}, and more than config.max_skipped_steps = "
                f"{self._guards.max_skipped_steps} such steps stop the run; metrics.jsonl names their clips, the last "
                "checkpoint stays. A lower optim.lr, optim.clip_norm, or float32 towers may help"
            )

    def _evaluates(self, step: int) -> bool:
        return step == self._schedule.steps or _divides(self._cadence.evaluate, step)

    def _evaluate(self, step: int, state: TrainState) -> None:
        """Records the loss over all held-out examples, and what it tells of listening.

        That is how much lower it is than with other clips' music, and some answers beside the true ones.
        Not if there are none, or a stop is asked for meanwhile: it can take longer than who asks will wait.
        """
        batches = self._setup.batches
        found = self._mean_loss(state, batches.held_out())
        if found is None:
            return
        loss, listening = found[0], None
        if (dealt := batches.other_clips()) is not None:
            other = self._mean_loss(state, dealt)
            if other is None:
                return
            listening = loss - other[0]
        # Where the loss is no number, neither are the logits.
        answered = self._setup.answers(state.trained) if math.isfinite(loss) else []
        self._outputs.record.evaluation(step, *found, listening=listening, answers=answered)
        beside = "" if listening is None else f", {loss - listening:.4f} with other clips' music"
        for line in (f"step {step}: held-out loss {loss:.4f}{beside}", *shown(answered)):
            self._outputs.progress.say(line)

    def _mean_loss(self, state: TrainState, batches: Iterator[Batch]) -> tuple[float, float] | None:
        """The loss over all examples, its sum over the answers' tokens / their number, and this number.

        None if there are none, or if a stop was asked for meanwhile.
        """
        sums: list[tuple[np.ndarray, np.ndarray]] = []
        waiting = None
        for batch in batches:
            queued = self._eval_step(state.trained, self._setup.frozen, self._put(batch))
            sums += [jax.device_get(waiting)] if waiting else []
            waiting = queued
            if self._guards.preemption.asked():
                return None
        sums += [jax.device_get(waiting)] if waiting else []
        total, tokens = (math.fsum(float(pair[i]) for pair in sums) for i in (0, 1))
        return (total / tokens, tokens) if tokens else None

    def _save(self, step: int, state: TrainState, batches: grain.DatasetIterator[Batch]) -> None:
        self._outputs.record.sync()
        optimizer = {
            "opt_state": named_opt_state(state.opt_state),
            "gradient": state.gradient,
            "token_count": state.token_count,
        }
        data = batches.get_state()
        unreadable = self._guards.unreadable.share()
        saved = CheckpointState(
            step, to_host(state.trained), to_host(optimizer), data, self._guards.monitor.state, unreadable
        )
        towers = {name: self._setup.run[name]["identity"] for name in TOWERS.values()}
        self._outputs.checkpoints.save(saved, towers)


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
