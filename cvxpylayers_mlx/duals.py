"""Where the dual variables of CVXPY's constraints stand in y."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cvxpylayers_mlx.recover import Entries, Recovery, located
from mlxcone import MLXCONE


def locate(
    problem: Any, variables: Any, chain: Any, inverse: Any, n: int, m: int
) -> dict[int, Recovery]:
    """A recovery for each dual variable among ``variables``, by its id.

    CVXPY's way back from y is linear, with one entry of y for each entry of a dual value. Two
    vectors y show which and by what factor, and a third proves it.

    Raises:
        NotImplementedError: CVXPY does not give the dual, or combines several entries of y.
    """
    wanted = {v.id: tuple(v.shape) for v in variables}
    constraints = [c for c in problem.constraints if any(d.id in wanted for d in c.dual_variables)]
    places = np.arange(1.0, m + 1.0)
    probes = (np.ones(m), places, np.random.default_rng(0).standard_normal(m))
    seen = [_values(constraints, chain, inverse, n, y) for y in probes]
    duals = {}
    for identity in seen[0].keys() & wanted.keys():
        images = [values[identity] for values in seen]
        real = _entries([np.real(v) for v in images], probes[2])
        imag = None
        if any(np.iscomplexobj(v) for v in images):
            imag = _entries([np.imag(v) for v in images], probes[2])
        # CVXPY may save a column, (3, 1), for what it declares to be a vector, (3,).
        declared, saved = wanted[identity], images[0].shape
        shape = declared if math.prod(declared) == math.prod(saved) else saved
        duals[identity] = Recovery(shape, real, imag, is_dual=True)
    return duals


def _entries(images: list[np.ndarray], check: np.ndarray) -> Entries:
    factor, ramp, image = images
    index = np.rint(ramp / np.where(factor == 0, 1.0, factor)).astype(np.int32)
    index = np.where(factor == 0, 0, index)
    padded = np.append(0.0, check)
    fits = np.all((index >= 0) & (index < padded.size))
    if not fits or not np.allclose(factor * padded[index], image, rtol=1e-9, atol=1e-12):
        raise NotImplementedError("CVXPY combines several entries of y in one dual value")
    return located(index, factor)


def _values(
    constraints: list[Any], chain: Any, inverse: Any, n: int, y: np.ndarray
) -> dict[int, np.ndarray]:
    """The dual variables of constraints, by id, at one y; leaves the constraints as they were."""
    if not constraints:
        return {}
    reply = chain.invert(MLXCONE.answer(np.zeros(n), y), inverse)
    values = {}
    for constraint in constraints:
        if constraint.id not in reply.dual_vars:
            raise NotImplementedError(f"CVXPY gives no dual value of {constraint}")
        before = [d.value for d in constraint.dual_variables]
        constraint.save_dual_value(reply.dual_vars[constraint.id])
        for variable, old in zip(constraint.dual_variables, before, strict=True):
            values[variable.id] = np.array(variable.value)
            variable.save_value(old)
    return values
