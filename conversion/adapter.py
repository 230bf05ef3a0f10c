"""Where the adapter's tensors stand: MusiLingo's `llama_proj`."""

from conversion.keymap import Rule

RULES = (
    Rule("llama_proj.weight", "projection.kernel", "E D -> D E"),
    Rule("llama_proj.bias", "projection.bias", "E -> E"),
)
