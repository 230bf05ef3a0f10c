"""What differs between two sets of settings: what was and what is, what is there and what is wanted."""

from collections.abc import Iterator, Mapping
from typing import Any

# What files on disk call things that have another name by now.
FORMER_NAMES = {
    "hear_in_step": "encode_in_step",
    "keep_states": "per_layer",
    "learn_states": "layer_weights",
    "moments": "opt_state",
    "state_logits": "layer_weights",
    "unheard": "unreadable",
    "weight": "token_count",
    "window": "frames_per_token",
}


def current_names(tree: Any) -> Any:
    """The values of a JSON file, or a tree of arrays, under today's names."""
    if not isinstance(tree, Mapping):
        return tree
    return {FORMER_NAMES.get(name, name): current_names(value) for name, value in tree.items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted names, `a.b.c`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted names whose values differ in nested mappings, with both values; None where there is none."""
    a, b = dict(flatten(first)), dict(flatten(second))
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}
