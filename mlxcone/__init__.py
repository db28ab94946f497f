"""mlxcone: a batched, differentiable cone solver written in `mlx.core` operations."""

import importlib
from typing import TYPE_CHECKING

from mlxcone._version import __version__
from mlxcone.backend.devices import on_cpu
from mlxcone.cones.description import Cones
from mlxcone.program.problem import as_array
from mlxcone.report import History, Progress, Watcher
from mlxcone.settings import Settings
from mlxcone.solution import Info, Solution, evaluated
from mlxcone.solver import Solver, solve
from mlxcone.sparse_map import SparseMap
from mlxcone.status import DerivativeWarning, SolverError, Status

if TYPE_CHECKING:
    from mlxcone import distributed, nn, plots
    from mlxcone.cvxpy_interface import MLXCONE

__all__ = [
    "MLXCONE",
    "Cones",
    "DerivativeWarning",
    "History",
    "Info",
    "Progress",
    "Settings",
    "Solution",
    "Solver",
    "SolverError",
    "SparseMap",
    "Status",
    "Watcher",
    "__version__",
    "as_array",
    "distributed",
    "evaluated",
    "nn",
    "on_cpu",
    "plots",
    "solve",
]


def __getattr__(name: str) -> object:
    # CVXPY takes a second to import, and only this name needs it.
    if name == "MLXCONE":
        from mlxcone.cvxpy_interface import MLXCONE

        return MLXCONE
    if name in ("distributed", "nn", "plots"):
        return importlib.import_module(f"mlxcone.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
