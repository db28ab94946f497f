"""mlxcone as the solver of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

import mlxcone
from cvxpylayers_mlx import eliminate
from cvxpylayers_mlx.canonicalize import Canonical
from cvxpylayers_mlx.eliminate import Read, spoiled


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
        self._program = eliminate.shortest(form)
        rest = {"on_failure": "raise", **options}
        self._warm_start = rest.pop("warm_start", None)
        self._settings = mlxcone.Settings().override(rest)
        self._last: tuple[np.ndarray, ...] | None = None

    def __call__(
        self, read: Read, options: Mapping[str, Any], wrong: mx.array | None
    ) -> mlxcone.Solution:
        """Solve for the data that ``read`` gives; options replace the layer's.

        Lanes that are ``wrong``, (B,) or (), fail.
        """
        rest = dict(options)
        warm = rest.pop("warm_start", self._warm_start)
        settings, program = self._settings.override(rest), self._program
        data = spoiled(program.read(read), wrong)
        if not settings.data_rounding:
            settings = settings.override({"data_rounding": mx.finfo(data.dtype).eps})
        start = program.start(self._start(warm, data[:4]))
        found = mlxcone.solve(*data[:4], program.cones, warm_start=start, settings=settings)
        found = program.restore(found, data)
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


def _numbers(solution: mlxcone.Solution) -> tuple[np.ndarray, ...] | None:
    """x, y and s; None under transforms whose arrays have no numbers."""
    try:
        return tuple(np.array(v) for v in solution[:3])
    except (RuntimeError, ValueError) as error:
        if "transform" not in str(error):
            raise
        return None
