"""mlxcone as the solver of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

import mlxcone
from cvxpylayers_mlx.canonicalize import Canonical
from cvxpylayers_mlx.dualize import Dual
from cvxpylayers_mlx.eliminate import Elimination
from cvxpylayers_mlx.parameters import have_numbers
from cvxpylayers_mlx.program import Read, Whole, spoiled

_OWN = ("warm_start",)  # what only a layer has


class Native:
    """`mlxcone.solve` with the settings of a layer, and its memory of the last solution.

    Args:
        form (Canonical): the program.
        options (dict): of `mlxcone.Settings`, and "warm_start": True to begin each solve where
            the last one ended, or a `LayerSolution`, a `mlxcone.Solution` or (x, y, s) to begin
            at.

    Raises:
        ValueError: an option is unknown.
    """

    def __init__(self, form: Canonical, options: Mapping[str, Any]) -> None:
        self._whole = Whole(form)
        self._program = Elimination.of(form) or Dual.of(form) or self._whole
        rest = {"on_failure": "raise", **options}
        self._warm_start = rest.pop("warm_start", None)
        self._settings = mlxcone.Settings().override(rest, _OWN)
        self._last: tuple[np.ndarray, ...] | None = None

    def __call__(
        self, read: Read, options: Mapping[str, Any], wrong: mx.array | None
    ) -> mlxcone.Solution:
        """Solve for the data that ``read`` gives; options replace the layer's.

        Lanes that are ``wrong``, (B,) or (), fail.
        """
        rest = dict(options)
        warm = rest.pop("warm_start", self._warm_start)
        settings, program = self._settings.override(rest, _OWN), self._program
        data = spoiled(program.read(read), wrong)
        # Statuses that are exchanged first are looked at here, if they can be.
        raises = program.turned and settings.on_failure == "raise"
        if raises and not have_numbers(data[:4]):
            program, raises = self._whole, False
            data = spoiled(program.read(read), wrong)
        if raises:
            settings = settings.override({"on_failure": "return"})
        rounding = settings.data_rounding or mx.finfo(data.dtype).eps
        scale = settings.scale * program.weight
        settings = settings.override({"data_rounding": rounding, "scale": scale})
        start = program.start(self._start(warm, data[:4]))
        found = mlxcone.solve(
            *data[:4], program.cones, warm_start=start, pattern=program.pattern, settings=settings
        )
        found = program.restore(found, data)
        if raises:
            _check(found.info.status)
        if warm is True and not settings.fixed_iters:
            self._last = _numbers(found)
        return found

    def _start(self, warm: Any, data: tuple[Any, ...]) -> Any:
        """(x, y, s) if there is one."""
        if warm is True:
            # One of another batch size says nothing; solutions of lanes that failed are not used.
            lanes = [a.shape[:-r] for a, r in zip(data, (2, 1, 2, 1), strict=True) if a is not None]
            batch = max(lanes, key=len)
            last = self._last  # read once: another thread may be writing it
            return last if last is not None and last[0].shape[:-1] == batch else None
        if warm is None or warm is False:
            return None
        return getattr(warm, "canonical", warm)


def _check(status: mx.array) -> None:
    """Raise where a lane has no solution."""
    codes = np.atleast_1d(np.array(status))
    failed = {int(k): mlxcone.Status(int(codes[k])) for k in np.flatnonzero(codes <= 0)}
    if failed:
        raise mlxcone.SolverError(failed)


def _numbers(solution: mlxcone.Solution) -> tuple[np.ndarray, ...] | None:
    """x, y and s; None under transforms whose arrays have no numbers."""
    try:
        return tuple(np.array(v) for v in solution[:3])
    except (RuntimeError, ValueError) as error:
        if "transform" not in str(error):
            raise
        return None
