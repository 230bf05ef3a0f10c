"""Weights from PyTorch's layouts to JAX's and back."""
