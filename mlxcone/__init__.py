"""mlxcone: a batched, differentiable cone solver written in `mlx.core` operations."""

from mlxcone._version import __version__
from mlxcone.cones.product import Cones
from mlxcone.differentiable import Solver, solve
from mlxcone.problem import as_array
from mlxcone.settings import Settings
from mlxcone.solution import Info, Solution
from mlxcone.status import SolverError, Status

__all__ = [
    "Cones",
    "Info",
    "Settings",
    "Solution",
    "Solver",
    "SolverError",
    "Status",
    "__version__",
    "as_array",
    "solve",
]
