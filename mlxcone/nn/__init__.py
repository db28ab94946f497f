"""Ready layers: ``mlx.nn.Module``s whose outputs solve a cone program.

Each takes and returns ``mx.array``s with any number of leading axes, in the dtype of its input, and
passes settings by name to the solver (`mlxcone.Settings`).
"""

from mlxcone.nn.choice import SoftTopK, Sparsemax
from mlxcone.nn.control import LinearMPC, Plan
from mlxcone.nn.projections import BoxSimplex, L1Ball, L2Ball, Projection, Semidefinite, Simplex
from mlxcone.nn.quadratic import QuadraticProgram

__all__ = [
    "BoxSimplex",
    "L1Ball",
    "L2Ball",
    "LinearMPC",
    "Plan",
    "Projection",
    "QuadraticProgram",
    "Semidefinite",
    "Simplex",
    "SoftTopK",
    "Sparsemax",
]
