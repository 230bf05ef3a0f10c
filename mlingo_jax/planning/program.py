"""What a compiled program tells of itself: the collectives that it runs, read from XLA's text of it.

The text is `compiled.as_text()`, for CPU, GPU or TPU: one line an instruction, grouped into computations that call each
other. Asynchronous collectives appear as a start and a done; a TPU's may be cut into pieces of one `chain_id`, one
piece beside each computation that it hides behind.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"^\s+(?:ROOT )?%[\w.-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
    r"(?:%?([\w.-]+)|\{([^}]*)\})"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"^\s+ROOT .* compare\(.*%([\w.-]+)\), direction=LT", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: one of KINDS.
        shapes: what the group of devices gathers, reduces, scatters or exchanges, whole: ("bf16[4096,11008]",).
        bytes: the size of that. A device sends about (n - 1) / n of it, and twice that to all-reduce.
        devices: n, the number of devices in a group.
        loops: how often each loop around it runs, the outermost first; None for a loop that ends by its data.
        computation: where it stands in the text.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    devices: int
    loops: tuple[int | None, ...]
    computation: str

    @property
    def times(self) -> int | None:
        """How often one execution of the program runs it; None if that depends on the data."""
        return None if None in self.loops else math.prod(n or 0 for n in self.loops)


def collectives(text: str) -> list[Collective]:
    """The collectives that a compiled program runs; of a conditional's branches, those of each."""
    bodies, entry = computations(text)
    found: list[Collective] = []
    seen: set[tuple[str, ...]] = set()

    def walk(name: str, loops: tuple[int | None, ...], body: str) -> None:
        for line in bodies[name]:
            if match := _COLLECTIVE.match(line):
                if "chain_id=" in line:
                    piece = (body, *re.findall(r"(?:chain_id|channel_id)=\"?(\d+)", line))
                    if piece in seen:
                        continue
                    seen.add(piece)
                found.append(_collective(match, line, name, loops, text))
                continue
            is_loop = " while(" in line
            for callee in called(line):
                if callee in bodies:
                    inner = (*loops, trips(line, bodies)) if is_loop else loops
                    walk(callee, inner, callee if is_loop else body)

    walk(entry, (), entry)
    return found


def donated(text: str) -> frozenset[int]:
    """The numbers of the program's arguments whose memory its results take over."""
    header = text.partition("\n")[0]
    aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)
    return frozenset(int(n) for n in re.findall(r": \((\d+),", aliases[1])) if aliases else frozenset()


def array_bytes(shape: str) -> int:
    """The size of "bf16[4,128]"; 4-bit numbers are packed."""
    (dtype, sizes) = _ARRAY.findall(shape)[0]
    bits = _BITS.search(dtype)
    count = math.prod(int(size) for size in sizes.split(",") if size)
    return -(-count * (8 if dtype == "pred" or bits is None else int(bits[0])) // 8)


def computations(text: str) -> tuple[Mapping[str, list[str]], str]:
    """The lines of each computation, and the name of the one that the program starts with."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return found, entry


def called(line: str) -> Iterator[str]:
    """The computations that an instruction names."""
    for one, several in _CALLS.findall(line):
        yield from (name.strip().lstrip("%") for name in (one or several).split(","))


def trips(line: str, bodies: Mapping[str, list[str]]) -> int | None:
    """How often a loop runs: as the compiler notes it, or the bound of a counter (JAX's scans count up from 0)."""
    if noted := _TRIPS.search(line):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = bodies.get(condition[1], []) if condition else []
    bound = _BOUND.search("\n".join(lines))
    constant = bound and re.search(rf"%{re.escape(bound[1])} = s\d+\[\]\S* constant\((\d+)\)", "\n".join(lines))
    return int(constant[1]) if constant else None


def _collective(
    match: re.Match[str], line: str, computation: str, loops: tuple[int | None, ...], text: str
) -> Collective:
    result, kind, start = match.groups()
    # The start of a pair gives (operands, results, …); of an all-reduce, whose both are the same, the results alone.
    if start and kind != "all-reduce" and result.startswith("("):
        result = _parts(result)[1]
    devices = _group_size(line, text)
    shapes = tuple(f"{dtype}[{sizes}]" for dtype, sizes in _ARRAY.findall(result))
    size = sum(map(array_bytes, shapes))
    if kind == "reduce-scatter":
        size *= devices
    # A TPU's reduce-scatter: a fusion of an all-reduce and each device's own slice.
    elif kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return Collective(kind, shapes, size, devices, loops, computation)


def _parts(text: str) -> list[str]:
    """The elements of a tuple type: "(a, (b, c))" -> ["a", "(b, c)"]."""
    parts, depth = [""], 0
    for character in text[1:-1]:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _group_size(line: str, text: str) -> int:
    """The devices that talk to each other, in any of the ways that XLA writes groups."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return len(set(re.findall(r"\d+", pairs[1])))
    if mesh := re.search(r"replica_groups=mesh\[([^]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(counted[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    everyone = re.search(r"num_partitions=(\d+)", text)
    return int(everyone[1]) if everyone else 1
