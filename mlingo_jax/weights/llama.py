"""transformers' names and layouts of a LLaMA-like model's tensors, and ours."""

from mlingo_jax.weights.keymap import Rule

RULES = (
    Rule("model.embed_tokens.weight", "embedding", "V D -> V D"),
    Rule("model.layers.{l}.input_layernorm.weight", "layers.attention_norm.scale", "D -> D"),
    Rule("model.layers.{l}.self_attn.q_proj.weight", "layers.attention.query.kernel", "(N H) D -> N H D"),
    Rule("model.layers.{l}.self_attn.q_proj.bias", "layers.attention.query.bias", "(N H) -> N H"),
    Rule("model.layers.{l}.self_attn.k_proj.weight", "layers.attention.key.kernel", "(K H) D -> K H D"),
    Rule("model.layers.{l}.self_attn.k_proj.bias", "layers.attention.key.bias", "(K H) -> K H"),
    Rule("model.layers.{l}.self_attn.v_proj.weight", "layers.attention.value.kernel", "(K H) D -> K H D"),
    Rule("model.layers.{l}.self_attn.v_proj.bias", "layers.attention.value.bias", "(K H) -> K H"),
    Rule("model.layers.{l}.self_attn.o_proj.weight", "layers.attention.out.kernel", "D (N H) -> N H D"),
    Rule("model.layers.{l}.self_attn.o_proj.bias", "layers.attention.out.bias", "D -> D"),
    Rule("model.layers.{l}.self_attn.q_norm.weight", "layers.attention.query_norm.scale", "H -> H"),
    Rule("model.layers.{l}.self_attn.k_norm.weight", "layers.attention.key_norm.scale", "H -> H"),
    Rule("model.layers.{l}.post_attention_layernorm.weight", "layers.mlp_norm.scale", "D -> D"),
    Rule("model.layers.{l}.mlp.gate_proj.weight", "layers.mlp.gate.kernel", "F D -> D F"),
    Rule("model.layers.{l}.mlp.gate_proj.bias", "layers.mlp.gate.bias", "F -> F"),
    Rule("model.layers.{l}.mlp.up_proj.weight", "layers.mlp.up.kernel", "F D -> D F"),
    Rule("model.layers.{l}.mlp.up_proj.bias", "layers.mlp.up.bias", "F -> F"),
    Rule("model.layers.{l}.mlp.down_proj.weight", "layers.mlp.down.kernel", "D F -> F D"),
    Rule("model.layers.{l}.mlp.down_proj.bias", "layers.mlp.down.bias", "D -> D"),
    Rule("model.norm.weight", "norm.scale", "D -> D"),
    Rule("lm_head.weight", "head", "V D -> V D"),
)
