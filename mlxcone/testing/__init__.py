r"""Property-based testing of conic solvers, in NumPy and hypothesis alone.

Nothing here knows how a solver works. `mlxcone.testing.verifier` judges an answer by the
optimality conditions or by the definition of a certificate, with the cones of
`mlxcone.testing.projections`; `mlxcone.testing.manufacture` makes random problems whose
answer is known by construction, `mlxcone.testing.structure` makes them degenerate,
`mlxcone.testing.scaling` gives them awkward units, and `mlxcone.testing.claims` holds
what a solver says against what is known. `mlxcone.testing.strategies` lets hypothesis draw and
shrink them:

```python
from hypothesis import given
from mlxcone.testing import strategies

@given(strategies.instances(max_n=20, max_m=30))
def test_my_solver(instance):
    x, y, s = my_solver(*instance.data)
    instance.check(x, y, s, tolerance=1e-6)
```

Every problem has the form

\[
\text{minimize } \tfrac12 x^T P x + q^T x
\quad \text{subject to } A x + s = b, \; s \in K,
\]

with K given as a dictionary in the format of SCS.
"""

# `strategies` is left to be imported by name: it alone needs hypothesis.
from mlxcone.testing import claims, manufacture, scaling
from mlxcone.testing.manufacture import Instance
from mlxcone.testing.projections import cone_rows, project_cone, project_dual_cone
from mlxcone.testing.structure import Structure
from mlxcone.testing.verifier import (
    Verdict,
    assert_infeasible,
    assert_solved,
    assert_unbounded,
    verify_infeasible,
    verify_solution,
    verify_unbounded,
)

__all__ = [
    "Instance",
    "Structure",
    "Verdict",
    "assert_infeasible",
    "assert_solved",
    "assert_unbounded",
    "claims",
    "cone_rows",
    "manufacture",
    "project_cone",
    "project_dual_cone",
    "scaling",
    "verify_infeasible",
    "verify_solution",
    "verify_unbounded",
]
