"""CVXPY problems as differentiable layers of MLX models, solved by mlxcone."""

from cvxpylayers_mlx.layer import CvxpyLayer, LayerSolution

__all__ = ["CvxpyLayer", "LayerSolution"]
