"""The converters' commands by their short names; the code is in `mlingo_jax.conversion`."""
