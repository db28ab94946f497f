"""Derivatives of the solution map, and MLX's transforms."""
