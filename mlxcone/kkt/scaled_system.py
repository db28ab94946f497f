"""The linear system of an interior-point step, factored in one of two ways.

    [ P  A' ; A  -W^2 ] (dx, dy) = (r, t),    W^2 = 0 on equalities.

`Reduced` eliminates the inequalities, H = P + A'W^-2 A, and then the equalities E by E H^-1 E' (as
in CVXOPT). W^-2 spans twenty orders of magnitude, which Cholesky's method survives as long as no
large weight stands for an equality; but where the multipliers grow without bound (no strictly
feasible point) the directions it gives end at half the digits. `Whole` factors the matrix as it is,
with pivots: (n + m)^3 instead of n^3, and as good as the matrix allows.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxcone.backend.linalg import lu_inverses, shifted_root
from mlxcone.cones.product import Product
from mlxcone.kkt import reduced as kkt
from mlxcone.program.operators import Rectangular, row_times
from mlxcone.program.problem import Program
from mlxcone.program.residuals import norm

_DAMP = 1e-13  # beside W^2
_SHIFTS = (1e-14, 1e-12, 1e-10, 1e-8, 1e-6)  # beside a unit diagonal, until Cholesky goes through
_PIVOT = 1e-14  # on the diagonal of the whole matrix, of entries at most 1
_LARGE = 1e-3  # W^2 of rows that need no pivot of the whole matrix: entries of A are about 1
_ROUNDS = 3  # of equilibration of the whole matrix
_SWEEPS = 8  # of iterative refinement, while each halves the residual


def _penalty(eigenvalue: mx.array) -> mx.array:
    return 1.0 / (eigenvalue + _DAMP)


class System:
    """The system at some W^2; ``ok`` (B, 1) tells where it could be factored.

    Args:
        program (Program): equilibrated, float64.
        cones (Product): its cones, without boxes.
        atoms (list): of W^2.
    """

    ok: mx.array
    proximal = 0.0  # weight beside P

    def __init__(self, program: Program, cones: Product, atoms: list[Any]) -> None:
        self.program, self.cones, self.atoms = program, cones, atoms
        self.equalities = cones.zero_rows
        self._factor()

    def _factor(self) -> None:
        """What each form of the system makes once; this class has none of its own."""
        raise NotImplementedError

    def _solve_once(self, r: mx.array, t: mx.array) -> tuple[mx.array, mx.array]:
        """A solve by the factor of the form, without refinement."""
        raise NotImplementedError

    def square(self, v: mx.array) -> mx.array:
        """W^2 v, for v (B, m) or (B or 1, m, k)."""
        out = self.cones.apply_derivative(self.atoms, v)
        k = self.equalities
        return mx.concatenate([mx.zeros_like(out[:, :k]), out[:, k:]], axis=1)

    def solve(self, r: mx.array, t: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Solve, by iterative refinement.

        Returns:
            tuple: dx, dy, and what is left of r and t, relative to them, (B, 1). P here is P and
            the proximal weight, whose share of r vanishes with the step.
        """
        program = self.program
        dx, dy = mx.zeros_like(r), mx.zeros_like(t)
        left, last = (r, t), mx.full((r.shape[0], 1), mx.inf, dtype=r.dtype)
        for _ in range(_SWEEPS):
            more_x, more_y = self._solve_once(*left)
            x, y = dx + more_x, dy + more_y
            new = (
                r - program.P_times(x) - self.proximal * x - program.A.transpose_times(y),
                t - program.A.times(x) + self.square(y),
            )
            size = mx.maximum(norm(new[0]), norm(new[1]))[:, None]
            better = size < last  # False for NaN
            dx, dy = mx.where(better, x, dx), mx.where(better, y, dy)
            left = tuple(mx.where(better, a, b) for a, b in zip(new, left, strict=True))
            worth = bool(mx.any(better & (size < 0.5 * last)).item())
            last = mx.where(better, size, last)
            if not worth:
                break
        parts = [norm(a) / mx.maximum(norm(b), 1e-300) for a, b in zip(left, (r, t), strict=True)]
        return dx, dy, mx.maximum(*parts)[:, None]


class Reduced(System):
    """By two Cholesky factors, of the sizes n and of the number of equalities."""

    proximal = 1e-12  # directions that nothing holds would drift by rounding

    def _factor(self) -> None:
        program, A = self.program, self.program.A.matrix
        H = kkt.gram(program, self.cones, self.atoms, _penalty, fine=True)
        if program.P is not None:
            H = H + program.P
        H = H + self.proximal * mx.eye(program.n, dtype=A.dtype)
        self.root, self.unit, ok = self._cholesky(H)
        if self.equalities:
            E = mx.swapaxes(A[..., : self.equalities, :], -1, -2)
            E = E if E.ndim == 3 else E[None]
            self.half = self.root @ (self.unit[..., None] * E)
            S = mx.swapaxes(self.half, -1, -2) @ self.half
            self.schur, self.schur_unit, fits = self._cholesky(S)
            ok = ok & fits
        self.ok = ok[:, None]

    def _cholesky(self, matrix: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """R and d with diag(d) R'R diag(d) = matrix^-1, and where there are any."""
        diagonal = mx.diagonal(matrix, axis1=-2, axis2=-1)
        unit = mx.rsqrt(mx.maximum(diagonal, 1e-30))
        scaled = unit[..., :, None] * matrix * unit[..., None, :]
        root, ok = shifted_root(0.5 * (scaled + mx.swapaxes(scaled, -1, -2)), _SHIFTS)
        return root, unit, ok

    def _weight(self, v: mx.array) -> mx.array:
        """(W^2 + damp)^-1 v, and v on the equalities."""
        return self.cones.spectral(self.atoms, _penalty, v)

    def _solve_once(self, r: mx.array, t: mx.array) -> tuple[mx.array, mx.array]:
        A, k = self.program.A, self.equalities
        # H includes E'E, so r gets E't: what is true does not change.
        right = self.unit * (r + A.transpose_times(self._weight(t)))
        half = row_times(right, mx.swapaxes(self.root, -1, -2))
        if not k:
            dx = self.unit * row_times(half, self.root)
            return dx, self._weight(A.times(dx) - t)
        off = self.schur_unit * (row_times(half, self.half) - t[:, :k])
        dy = row_times(row_times(off, mx.swapaxes(self.schur, -1, -2)), self.schur)
        dy = self.schur_unit * dy
        half = half - row_times(dy, mx.swapaxes(self.half, -1, -2))
        dx = self.unit * row_times(half, self.root)
        rest = self._weight(A.times(dx) - t)
        return dx, mx.concatenate([dy, rest[:, k:]], axis=1)


class Whole(System):
    """By Gaussian elimination with pivots on the equilibrated matrix.

    In eigenvectors of W^2, where a cone has them, -W^2 is diagonal, and large entries are pivots
    that cost few digits. Their rows go first; what is left has n rows and one for each small entry,
    which at a solution are about n.
    """

    def _factor(self) -> None:
        program, cones, n = self.program, self.cones, self.program.n
        A = program.A.matrix if program.A.matrix.ndim == 3 else program.A.matrix[None]
        A, W2 = cones.turned(self.atoms, A), cones.diagonal(self.atoms)
        lanes = max(A.shape[0], W2.shape[0], program.lanes)
        A, W2 = (mx.broadcast_to(v, (lanes, *v.shape[1:])) for v in (A, W2))
        large = W2 >= _LARGE  # False for NaN, where W^2 is not diagonal
        most: Any = mx.max(mx.sum(mx.logical_not(large), axis=1)).item()
        stays = max(1, most)
        # First the rows without eigenvectors, in their order.
        whole = mx.isnan(W2)
        order = mx.argsort(mx.where(whole, mx.arange(-program.m, 0.0), W2), axis=1)
        self._kept, self._place = order[:, :stays], mx.argsort(order, axis=1)
        self._goes = self._place >= stays
        self._weights = mx.where(self._goes, 1.0 / mx.where(self._goes, W2, 1.0), 0.0)
        self._turned = Rectangular.of(A)
        H = self._turned.transposed @ (self._weights[..., None] * A)
        H = H if program.P is None else H + program.P
        small = mx.take_along_axis(A, self._kept[..., None], axis=1)
        rows = [[H, mx.swapaxes(small, -1, -2)], [small, -self._corner(W2)]]
        K = mx.concatenate([mx.concatenate(row, axis=2) for row in rows], axis=1)
        self.unit = mx.ones((lanes, n + stays), dtype=A.dtype)
        for _ in range(_ROUNDS):
            scaled = self.unit[:, :, None] * K * self.unit[:, None, :]
            largest = mx.max(mx.abs(scaled), axis=2)
            self.unit = self.unit * mx.rsqrt(mx.maximum(largest, 1e-30))
        signs = mx.where(mx.arange(n + stays) < n, _PIVOT, -_PIVOT)
        K = self.unit[:, :, None] * K * self.unit[:, None, :] + mx.diag(signs.astype(A.dtype))
        self.lower, self.upper, ok = lu_inverses(K)
        self.ok = ok[:, None]

    def _corner(self, W2: mx.array) -> mx.array:
        """W^2 on the rows that stay, where ``W2`` (B, m) is its diagonal, NaN where it has more."""
        kept = mx.take_along_axis(W2, self._kept, axis=1)
        corner = mx.where(mx.isnan(kept), 0.0, kept)[..., None] * mx.eye(
            kept.shape[1], dtype=W2.dtype
        )
        rows = self.cones.undiagonal
        if not rows:
            return corner
        here = mx.array(rows)
        units = mx.eye(self.program.m, dtype=W2.dtype)[:, here]
        block = self.square(units[None])[:, here]
        rest = kept.shape[1] - len(rows)
        return corner + mx.pad(block, [(0, 0), (0, rest), (0, rest)])

    def _solve_once(self, r: mx.array, t: mx.array) -> tuple[mx.array, mx.array]:
        n = self.program.n
        t = self.cones.turned(self.atoms, t[..., None])[..., 0]
        r = r + self._turned.transpose_times(self._weights * t)
        right = self.unit * mx.concatenate([r, mx.take_along_axis(t, self._kept, axis=1)], axis=1)
        found = self.unit * row_times(row_times(right, self.lower), self.upper)
        dx, kept = found[:, :n], found[:, n:]
        gone = self._weights * (self._turned.times(dx) - t)
        at = mx.minimum(self._place, kept.shape[1] - 1)
        dy = mx.where(self._goes, gone, mx.take_along_axis(kept, at, axis=1))
        return dx, self.cones.turned(self.atoms, dy[..., None], back=True)[..., 0]
