"""What a compiled program moves between a device and its memory, read from XLA's text of it, loops multiplied out.

Every instruction reads its operands and writes its result; inside of a fusion nothing is moved. Of an operand that is
only sliced, the slices count, and of an array that is updated in place, the update. What lies in a TPU's own fast
memory (S(1) in its layout) costs nothing, nor does room to work in that a GPU's library asks for.
"""

import dataclasses
import re
from collections.abc import Mapping

from mlingo_jax.planning.program import array_bytes, called, computations, trips

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)")
_ARRAY = re.compile(r"\b([a-z]\w*\[[\d,]*\])(\{[^}]*\})?")
# The last result of cuBLAS and cuDNN: as much room as they may want, not what they write.
_WORKSPACE = re.compile(r", [su]8\[\d+\]\{0\}\)$")
_ELSEWHERE = re.compile(r"S\([1-9]")
# These move nothing by themselves.
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id|.*-(done|update)"
)
_CONTROL = ("while", "conditional", "call", "async-start")
_SLICES = ("dynamic-slice", "slice", "gather")
# Of these no more is made, inside of a fusion, than is asked for.
_LAZY = ("bitcast", "convert", "copy", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class _Instruction:
    root: bool
    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    line: str


def moved_bytes(text: str) -> int:
    """Bytes that one device reads from and writes to its memory in one execution; an endless loop counts once."""
    lines, entry = computations(text)
    return _Traffic({name: _parse(body) for name, body in lines.items()}, lines).of(entry)


class _Traffic:
    def __init__(self, parsed: Mapping[str, dict[str, _Instruction]], lines: Mapping[str, list[str]]):
        self._parsed, self._lines = parsed, lines

    def of(self, name: str) -> int:
        """The bytes of a computation that is run, not fused."""
        return sum(self._bytes(self._parsed[name], one) for one in self._parsed[name].values())

    def _bytes(self, scope: dict[str, _Instruction], one: _Instruction) -> int:
        if _FREE.fullmatch(one.kind):
            return 0
        inner = [name for name in called(one.line) if name in self._parsed]
        if one.kind == "conditional":
            return max(map(self.of, inner), default=0)
        if one.kind in _CONTROL:
            times = trips(one.line, self._lines) if one.kind == "while" else 1
            return (times or 1) * sum(map(self.of, inner))
        if one.kind.endswith("-start"):
            # Operands and results, but of this one the results alone.
            return _memory(one.type) * (2 if one.kind == "all-reduce-start" else 1)
        if one.kind == "fusion":
            fused = self._parsed[inner[0]]
            read = sum(
                round(_size(scope, operand) * self._share(fused, _parameter(fused, position)))
                for position, operand in enumerate(one.operands)
            )
            root = next(i for i in fused.values() if i.root)
            return read + min(_memory(one.type), self._written(fused, root))
        if one.kind in _SLICES:
            return 2 * _memory(one.type)
        if one.kind == "dynamic-update-slice":
            return 2 * _size(scope, one.operands[1])
        written = _WORKSPACE.sub(")", one.type) if 'custom_call_target="__cu' in one.line else one.type
        return _memory(written) + sum(_size(scope, operand) for operand in one.operands)

    def _share(self, fused: dict[str, _Instruction], name: str, wanted: float = 1.0) -> float:
        """How much of a value a fusion reads, at most, to make the `wanted` share of its result."""
        value, share = fused[name], wanted if fused[name].root else 0.0
        for one in fused.values():
            for position, operand in enumerate(one.operands):
                if operand != name or _continues(fused, one) or (one.root and one.kind == "tuple"):
                    continue
                if one.kind in _SLICES and position == 0:
                    share += _plain(one.type) / max(_plain(value.type), 1)
                elif one.kind in _LAZY:
                    share += self._share(fused, one.name, wanted)
                elif one.kind == "fusion":
                    inner = self._parsed[next(iter(called(one.line)))]
                    share += self._share(inner, _parameter(inner, position), self._share(fused, one.name, wanted))
                elif one.kind != "dynamic-update-slice" or position:
                    return 1.0
        return min(share, 1.0)

    def _written(self, fused: dict[str, _Instruction], root: _Instruction) -> int:
        """What a fusion's result writes; not what it hands on as it was given."""
        if root.kind == "parameter" or _continues(fused, root):
            return 0
        if root.kind == "dynamic-update-slice":
            return _plain(fused[root.operands[1]].type)
        if root.kind in ("bitcast", "tuple"):
            return sum(self._written(fused, fused[operand]) for operand in root.operands)
        return _plain(root.type)


def _parse(lines: list[str]) -> dict[str, _Instruction]:
    found: dict[str, _Instruction] = {}
    for line in lines:
        if match := _INSTRUCTION.match(line):
            root, name, kind, op, operands = match.groups()
            found[name] = _Instruction(bool(root), name, kind, op, tuple(re.findall(r"%([\w.-]+)", operands)), line)
    return found


def _continues(fused: dict[str, _Instruction], one: _Instruction) -> bool:
    """Whether it is a later piece of a collective that is spread over several fusions; the first counts for all."""
    if "AsyncCollectiveDone" in one.line:
        return True
    return "chain_id=" in one.line and not any("AsyncCollectiveStart" in i.line for i in fused.values())


def _parameter(fused: dict[str, _Instruction], position: int) -> str:
    return next(i.name for i in fused.values() if i.kind == "parameter" and f" parameter({position})" in i.line)


def _size(scope: dict[str, _Instruction], operand: str) -> int:
    return _memory(scope[operand].type) if operand in scope else 0


def _memory(text: str) -> int:
    """The bytes of a type's arrays that lie in the device's memory."""
    return sum(array_bytes(array) for array, layout in _ARRAY.findall(text) if not _ELSEWHERE.search(layout))


def _plain(text: str) -> int:
    """The bytes of a type's arrays, wherever they lie."""
    return sum(array_bytes(array) for array, _ in _ARRAY.findall(text))
