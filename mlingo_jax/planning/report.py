"""A plan as text: what one would read before renting. Figures say whether they are compiled, or a limit, or assumed."""

from collections import defaultdict

from mlingo_jax.planning.costs import Costs, sent_bytes
from mlingo_jax.planning.machines import GIB, NODE, Machine, memory_fraction
from mlingo_jax.planning.roofline import Roofline, besides, formula, roofline
from mlingo_jax.planning.search import Candidate
from mlingo_jax.planning.shapes import Shapes, parameter_counts
from mlingo_jax.wording import counted

# Of the collectives, the ones that send most are named.
NAMED = 4


def describe_machine(machine: Machine, target: Machine) -> list[str]:
    """The machine's devices, what each can do, and what is compiled for instead where their compiler is not there."""
    kind = machine.kind
    lines = [f"machine      {machine.name}, {counted(machine.devices, 'device')}"]
    if kind:
        lines[0] += (
            f" of {kind.memory / GIB:.2f} GiB, {kind.flops / 1e12:.0f} TFLOP/s in bfloat16, memory at "
            f"{kind.bandwidth / 1e9:,.0f} GB/s, links at {kind.link / 1e9:.0f} GB/s"
        )
    if machine.is_gpu:
        lines.append(
            f"             programs get {memory_fraction():.0%} of that memory; XLA_CLIENT_MEM_FRACTION=0.9, of a plan "
            "as of a run, gives them more"
        )
    if machine.is_gpu and machine.devices > NODE:
        lines.append(
            f"             nodes of {NODE}: between them links are slower than that, and the least time longer"
        )
    if target != machine:
        lines.append(
            f"             an estimate, compiled for {target.name}: a GPU's own compiler is not installed "
            "(pip install 'mlingo_jax[cuda]'; it needs no GPU)"
        )
    if target.kind is None:
        lines.append("             a processor has no bfloat16: its temporaries hold copies in float32, an upper bound")
    return lines


def describe_run(shapes: Shapes, sources: tuple[str, str]) -> list[str]:
    """The towers, and a step's rows."""
    settings, counts = shapes.llm_settings, parameter_counts(shapes)
    kept = settings.dtype if settings.quantization == "none" else settings.quantization
    encoded = "encoded in the step" if shapes.spec.online else "features cached"
    assumed = "" if shapes.row else " (assumed; --config.data.length sets it)"
    return [
        f"encoder      {counts[0]:,} parameters, {shapes.spec.dtype} ({sources[0]})",
        f"language     {counts[1]:,} parameters, {kept} ({sources[1]})",
        f"step         {counted(shapes.batch_size, 'row')} of {shapes.length} tokens{assumed}, {shapes.music} of them "
        f"music from {shapes.encoded:g} s, {encoded}",
    ]


def describe_step(shapes: Shapes, costs: Costs, machine: Machine) -> list[str]:
    """A train step's memory, operations, traffic and collectives on each device, and the least time it takes."""
    terms = f"{'2 N_encoder frames + ' if shapes.spec.online else ''}4 N_llm tokens"
    lines = [
        f"memory       {_memory(costs, machine)}",
        f"operations   {costs.operations / 1e12:.1f} T in all; the floor {terms} is {formula(shapes) / 1e12:.1f} T",
        *(f"             besides {name}: {count / 1e12:.1f} T" for name, count in besides(shapes).items()),
        f"moved        {costs.moved / 1e9:.1f} GB on each device",
        *describe_collectives(costs),
    ]
    if machine.kind:
        limit = roofline(costs, machine.kind, machine.devices)
        lines += [f"least time   {_limits(limit)}", *describe_whole(shapes.schedule.steps, limit, machine)]
    return lines


def describe_collectives(costs: Costs) -> list[str]:
    """What is sent, by kind, the greatest first."""
    if not costs.collectives:
        return ["sent         nothing: no collectives"]
    sums: dict[tuple[str, int, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for one in costs.collectives:
        entry = sums[one.kind, one.devices, " ".join(one.shapes[:2]) + (" …" if len(one.shapes) > 2 else "")]
        entry[0] += one.times or 1
        entry[1] += sent_bytes(one) * (one.times or 1)
    ordered = sorted(sums.items(), key=lambda item: -item[1][1])
    lines = [f"sent         {costs.sent / 1e9:.2f} GB by each device"]
    for (kind, devices, shapes), (times, size) in ordered[:NAMED]:
        lines.append(f"             {size / 1e9:8.2f} GB  {int(times):4} x {kind} among {devices}: {shapes}")
    if len(ordered) > NAMED:
        rest = sum(size for _, (_, size) in ordered[NAMED:])
        lines.append(f"             {rest / 1e9:8.2f} GB  in {counted(len(ordered) - NAMED, 'smaller kind')}")
    return lines


def describe_whole(steps: int, limit: Roofline, machine: Machine) -> list[str]:
    """The time and device-hours of a run of so many steps."""
    return [f"whole run    {counted(steps, 'step')}: {_rent(steps * limit.seconds, machine)}"]


def describe_encoding(operations: int, clips: int, machine: Machine) -> list[str]:
    """What filling the feature cache takes, at the limit of computing; `operations` are those of one clip."""
    if not machine.kind:
        return [f"encoding     once, before: {operations / 1e12:.2f} T operations a clip"]
    seconds = operations / machine.devices / machine.kind.flops
    line = f"encoding     once, before: {operations / 1e12:.2f} T operations a clip, {1 / seconds:,.0f} clips/s at most"
    return [line + (f"; {counted(clips, 'clip')}: {_rent(clips * seconds, machine)}" if clips else "")]


def describe_answering(tokens: int, reading: Costs, writing: Costs, rows: int, machine: Machine) -> list[str]:
    """Memory and speed of answering `rows` questions at once, by so many tokens each."""
    most = max(reading, writing, key=lambda costs: costs.memory)
    lines = [f"answering    {counted(rows, 'row')}: {_memory(most, machine)}"]
    if machine.kind:
        first, each = (roofline(costs, machine.kind, machine.devices) for costs in (reading, writing))
        lines += [
            f"             reading the prompts {_limits(first)}",
            f"             each of {tokens} tokens {_limits(each)}; {rows / each.seconds:,.0f} tokens/s at most",
        ]
    return lines


def describe_search(candidates: list[Candidate], machine: Machine) -> list[str]:
    """The meshes that fit, best first, and why the others do not."""

    def seconds(one: Candidate) -> tuple[float, int]:
        assert one.costs
        limit = roofline(one.costs, machine.kind, machine.devices).seconds if machine.kind else 0.0
        return limit, one.costs.memory

    fitting = sorted((c for c in candidates if c.costs), key=seconds)
    lines = ["", "data x fsdp x tensor   memory, GiB   sent, GB   least time"]
    for one in fitting:
        assert one.costs
        limit = _limits(roofline(one.costs, machine.kind, machine.devices)) if machine.kind else "unknown"
        size, sent = one.costs.memory / GIB, one.costs.sent / 1e9
        lines.append(f"{_by(one.sizes):20}   {size:11.2f}   {sent:8.2f}   {limit}")
    lines += [f"{_by(one.sizes):20}   {one.refusal}" for one in candidates if not one.costs]
    return lines


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _memory(costs: Costs, machine: Machine) -> str:
    of = f" of {machine.memory / GIB:.2f}" if machine.kind else ""
    parts = f"arguments {costs.arguments / GIB:.2f}, temporaries {costs.temporaries / GIB:.2f}"
    return f"{costs.memory / GIB:.2f}{of} GiB on each device: {parts}"


def _limits(limit: Roofline) -> str:
    parts = f"compute {_time(limit.compute)}, memory {_time(limit.memory)}, links {_time(limit.links)}"
    return f"{_time(limit.seconds)}, bound by {limit.bound} ({parts})"


def _rent(seconds: float, machine: Machine) -> str:
    hours = seconds / 3600
    of = f"{hours / 24:.2f} days" if hours > 48 else f"{hours:.2f} hours"
    return f"{of}, {hours * machine.devices:,.1f} device-hours at that limit; twice that at half of it"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
