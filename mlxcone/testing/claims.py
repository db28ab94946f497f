"""Hold a solver's claim against a problem whose answer is known."""

import numpy as np
from numpy.typing import ArrayLike

from mlxcone.testing.manufacture import Expect, Instance
from mlxcone.testing.verifier import verify_infeasible, verify_solution, verify_unbounded

_MARGIN = 10.0


def measure(instance: Instance, claim: Expect, x: ArrayLike, y: ArrayLike, s: ArrayLike) -> float:
    """How far an answer is from what it claims to be, by the verifier alone.

    Args:
        instance: The problem; what is expected of it does not matter here.
        claim: "solved", "infeasible" or "unbounded".
        x: Solution or direction, shape (n,); not read when infeasible.
        y: Dual solution or certificate, shape (m,); not read when unbounded.
        s: Slack, shape (m,); not read when infeasible.

    Returns:
        The worst relative measure of a solution, or the violation of a certificate.

    Raises:
        ValueError: a shape does not fit.
    """
    if claim == "infeasible":
        return verify_infeasible(instance.A, instance.b, instance.cones, y)
    if claim == "unbounded":
        return verify_unbounded(instance.P, instance.q, instance.A, instance.cones, x, s)
    return verify_solution(*instance.data, x, y, s).worst


def is_decided(instance: Instance, tolerance: float = 1e-8) -> bool:
    """Tell whether answers at a tolerance can have one status only.

    With numbers of very different sizes, a right answer of one kind may satisfy the tolerance of
    another. For known x, y and s this is ruled out by what the verifier says about them: a feasible
    point of ``||x||_1 + ||s||_1 = N`` leaves no certificate of infeasibility below 1 / N, a
    dual feasible one none of unboundedness below ``1 / (||x||_1 + 2 ||y||_1)``; a
    certificate y leaves no primal residual below ``1 / ||y||_1``, and x no dual one below
    ``1 / ||x||_1``.

    Args:
        instance: The problem with its known answer.
        tolerance: Of solutions, relative, and of certificates, absolute.

    Returns:
        True if the expected status is the only right one, by a margin of ten, and the known
        answer itself is within a tenth of the tolerance.
    """
    known = measure(instance, instance.expect, instance.x, instance.y, instance.s)
    if not known * _MARGIN <= tolerance:
        return False
    size_x, size_y, size_s = (
        float(np.sum(np.abs(v))) for v in (instance.x, instance.y, instance.s)
    )
    if instance.expect == "infeasible":
        return _MARGIN * tolerance * size_y * (1.0 + _largest(instance.b)) <= 1.0
    if instance.expect == "unbounded":
        return _MARGIN * tolerance * size_x * (1.0 + _largest(instance.q)) <= 1.0
    return _MARGIN * tolerance * max(size_x + size_s, size_x + 2.0 * size_y) <= 1.0


def find_fault(
    instance: Instance,
    claim: Expect,
    x: ArrayLike,
    y: ArrayLike,
    s: ArrayLike,
    *,
    tolerance: float = 1e-8,
) -> str:
    """Say what is wrong with a solver's claim.

    Args:
        instance: The problem with its known answer.
        claim: What the solver says: "solved", "infeasible" or "unbounded".
        x: Solution or direction, shape (n,).
        y: Dual solution or certificate, shape (m,).
        s: Slack, shape (m,).
        tolerance: Bound on `measure`. A certificate, which is absolute, may exceed it by the
            rounding of ``A'y`` or ``A x`` and ``P x``, up to a hundred tolerances.

    Returns:
        A sentence; empty where the claim holds and does not contradict what is known.

    Raises:
        ValueError: a shape does not fit.
    """
    found = measure(instance, claim, x, y, s)
    allowed = tolerance + min(_rounding(instance, claim, x, y), 100.0 * tolerance)
    if not found <= allowed:
        return f"claims {claim}, off by {found:.1e} where {allowed:.0e} is allowed"
    if claim != instance.expect and is_decided(instance, tolerance):
        return f"claims {claim} of a problem that is {instance.expect}"
    return ""


def _rounding(instance: Instance, claim: Expect, x: ArrayLike, y: ArrayLike) -> float:
    """What rounding may do to the violation of a certificate; zero for a solution."""
    epsilon = float(np.finfo(np.float64).eps)
    if claim == "infeasible":
        ray, value = np.abs(y), float(np.dot(instance.b, y))
        terms = _largest(np.abs(instance.A.T) @ ray)
    elif claim == "unbounded":
        ray, value = np.abs(x), float(np.dot(instance.q, x))
        terms = max(_largest(np.abs(M) @ ray) for M in (instance.A, instance.P))
    else:
        return 0.0
    return 8.0 * epsilon * terms / -value if value < 0.0 else 0.0


def _largest(v: ArrayLike) -> float:
    return float(np.max(np.abs(v), initial=0.0))
