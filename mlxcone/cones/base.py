"""What every cone offers: a group of equal cones that occupies consecutive rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx

Spectral = Callable[[mx.array], mx.array]


class Cone(Protocol):
    """A group of ``count`` equal cones K on consecutive rows.

    All arrays carry the lanes of the batch first and the rows of the group next. The derivative
    D of the projection onto the dual cone K* is symmetric with eigenvalues in [0, 1]; it is kept
    as eigenvalues and whatever describes the eigenvectors, so that any function of D is as cheap
    as D (the linear algebra needs D and D ((1 + eps) I - D)^-1).
    """

    @property
    def rows(self) -> int:
        """Rows the group occupies."""
        ...

    @property
    def count(self) -> int:
        """Number of equal cones."""
        ...

    def project_dual(self, z: mx.array) -> mx.array:
        """Projection onto K*; ``z`` is (B, rows)."""
        ...

    def derivative(self, z: mx.array) -> Any:
        """Atoms of D at ``z``: a NamedTuple of arrays with lanes first, eigenvalues as field 0."""
        ...

    def spectral(self, atoms: Any, function: Spectral, v: mx.array) -> mx.array:
        """function(D) applied to the columns of ``v``, (B or 1, rows, k)."""
        ...

    def signature(self, atoms: Any) -> mx.array:
        """Numbers (B, k) of size 1 that move as D moves."""
        ...


def root(function: Spectral, eigenvalues: mx.array) -> mx.array:
    """Roots of a function that is nowhere negative, but for rounding."""
    return mx.sqrt(mx.maximum(function(eigenvalues), 0.0))


def half(cone: Cone, atoms: Any, function: Spectral, v: mx.array) -> mx.array:
    """V (B, columns, k) with V V' = v'function(D) v, for a function that is nowhere negative."""
    return mx.swapaxes(cone.spectral(atoms, lambda e: root(function, e), v), -1, -2)


class Interior(Cone, Protocol):
    """What interior-point steps need besides; a box is split into inequalities for them."""

    @property
    def degree(self) -> float:
        """Degree of the logarithmically homogeneous barrier of K*; 0 for equalities."""
        ...

    def centre(self, dtype: mx.Dtype) -> mx.array:
        """The point (rows,), inside of K and of K*, that `inverse` takes to itself."""
        ...

    def inverse(self, y: mx.array) -> mx.array:
        """Minus the gradient at y of the barrier; s is mu times that on the central path."""
        ...

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Any:
        """Atoms for `spectral` of W^2, which takes dy to -ds on the central path.

        Nesterov and Todd's if K is symmetric, else mu, (B, 1), times the Hessian at y of the
        barrier of K*.
        """
        ...

    def correction(self, atoms: Any, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        """What a step (ds, dy) leaves of s = mu g(y) in second order, Mehrotra's correction.

        Zero where the cone has no scaling in which s and y meet.
        """
        ...

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        """Length of the step along dv, (B, 1), at which v leaves K, or K* if ``dual``."""
        ...
