"""One batch shared out over several processes, forward and backward.

Every process makes the same call with the same whole batch, solves its share of the lanes, and gets
all the answers and the whole gradient: what one process would have got. Start the processes with
``mlx.launch -n 4 python script.py``.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from mlxcone.backend.devices import on_cpu
from mlxcone.cones.description import Cones
from mlxcone.program import problem
from mlxcone.solution import Solution, evaluated
from mlxcone.solver import solve as solve_here
from mlxcone.status import SolverError

_RANKS = {"P": 2, "q": 1, "A": 2, "b": 1}  # without a batch axis
_SAME = 1e-4  # fingerprints differ by less from another machine's rounding, by more from other data
_SCATTER = 2654435761  # 2^32 over the golden ratio: its multiples have random-looking high bits


class _Shares(NamedTuple):
    """Which lanes are whose: as even as can be, and filled up with lanes of its own to one size."""

    ours: mx.array
    places: mx.array  # of the lanes among the shares, one after the other
    names: list[int]  # of this process's lanes in the batch

    @classmethod
    def of(cls, lanes: int, group: mx.distributed.Group) -> _Shares:
        size = group.size()
        ends = [lanes * rank // size for rank in range(size + 1)]
        width = -(-lanes // size)
        begin, end = ends[group.rank() : group.rank() + 2]
        filled = [k if k < end else min(begin, lanes - 1) for k in range(begin, begin + width)]
        places = [
            rank * width + k for rank in range(size) for k in range(ends[rank + 1] - ends[rank])
        ]
        return cls(mx.array(filled), mx.array(places), filled)

    def named(self, error: SolverError) -> SolverError:
        """The error, with lanes as they are counted in the batch."""
        statuses = {self.names[lane]: status for lane, status in error.statuses.items()}
        faults = {self.names[lane]: fault for lane, fault in error.faults.items()}
        return SolverError(statuses, faults)

    @on_cpu
    def take(self, array: mx.array, axis: int) -> mx.array:
        """This process's share."""
        return mx.take(array, self.ours, axis=axis)

    @on_cpu
    def gathered(self, array: mx.array, group: mx.distributed.Group) -> mx.array:
        """All lanes, from everybody's share."""
        return mx.distributed.all_gather(array, group=group)[self.places]


def _batch_size(arguments: Sequence[mx.array], axes: Sequence[int | None]) -> int:
    """The one batch size of the arguments.

    Raises:
        ValueError: there is none, or more than one.
    """
    if len(axes) != len(arguments):
        raise ValueError(f"in_axes: expected {len(arguments)} entries, got {len(axes)}")
    for place, (array, axis) in enumerate(zip(arguments, axes, strict=True)):
        if axis is not None and not -array.ndim <= axis < array.ndim:
            raise ValueError(f"in_axes: argument {place}, {array.shape}, has no axis {axis}")
    pairs = zip(arguments, axes, strict=True)
    sizes = {a.shape[axis] for a, axis in pairs if axis is not None}
    if len(sizes) != 1:
        raise ValueError(f"in_axes: expected one batch size, got {sorted(sizes)}")
    return sizes.pop()


@on_cpu
def _fingerprint(arguments: Sequence[mx.array]) -> tuple[float, float]:
    """Two numbers that other data hardly share, and other rounding hardly moves."""
    share, size = mx.array(0.0), mx.array(0.0)
    for place, array in enumerate(arguments, 1):
        flat = mx.stop_gradient(array).reshape(-1)
        flat = mx.where(mx.isfinite(flat), flat, 0).astype(mx.float32)
        high = mx.arange(flat.size, dtype=mx.uint32) * mx.array(_SCATTER, dtype=mx.uint32)
        signed = mx.where(high > 2**31, flat, -flat)
        total = mx.sum(mx.abs(flat)) + 1e-30
        share, size = share + place * mx.sum(signed) / total, size + place * mx.log(total)
    found: Any = mx.stack([share, size]).tolist()
    return found[0], found[1]


@on_cpu
def _agree(
    arguments: Sequence[mx.array],
    axes: Sequence[int | None],
    options: Mapping[str, Any],
    group: mx.distributed.Group,
) -> int:
    """The batch size, if all processes make the same call; all learn if one does not.

    Raises:
        ValueError: this process's arguments do not fit together, or not to the others'.
        RuntimeError: another's do not fit together; under ``vmap`` or ``compile``.
    """
    error, lanes = None, 0
    try:
        lanes = _batch_size(arguments, axes)
    except ValueError as found:
        error = found
    shapes = [(a.shape, a.dtype) for a in arguments]
    told = re.sub(r" at 0x\w+", "", repr((shapes, sorted(options.items()))))
    layout = zlib.crc32(told.encode()) >> 10
    try:
        marks = _fingerprint(arguments)
    except (RuntimeError, ValueError) as traced:
        raise RuntimeError("sharded: MLX does not communicate under vmap and compile") from traced
    said = [float(error is not None), lanes, layout, *marks]
    heard: Any = mx.distributed.all_gather(mx.array([said]), group=group).tolist()
    if error is not None:
        raise error
    failed, sizes, layouts, *columns = zip(*heard, strict=True)
    if any(failed):
        ranks = [rank for rank, wrong in enumerate(failed) if wrong]
        raise RuntimeError(f"sharded: the calls of processes {ranks} failed; see theirs")
    same = "sharded: every process must make the same call with the same whole batch; "
    if len(set(sizes)) > 1:
        raise ValueError(f"{same}batch sizes are {[int(size) for size in sizes]}")
    if len(set(layouts)) > 1:
        raise ValueError(f"{same}shapes or dtypes of the arguments, or options, differ")
    if any(max(m) - min(m) > _SAME * max(1.0, *map(abs, m)) for m in columns):
        raise ValueError(f"{same}the numbers in the arguments differ")
    return lanes


@on_cpu
def _summed(array: mx.array, group: mx.distributed.Group) -> mx.array:
    return mx.distributed.all_sum(array, group=group)


def _everywhere(array: mx.array, group: mx.distributed.Group) -> mx.array:
    """The array; its cotangent is the sum over the processes, each of which knows its lanes'."""

    @mx.custom_function
    def identity(value: mx.array) -> Any:
        return value

    @identity.vjp
    def identity_vjp(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return _summed(cotangent, group)

    @identity.jvp
    def identity_jvp(primal: mx.array, tangent: mx.array) -> mx.array:
        return tangent

    found: Any = identity(array)
    return found


def sharded(
    function: Callable[..., Any],
    in_axes: int | Sequence[int | None] | None = 0,
    group: mx.distributed.Group | None = None,
) -> Callable[..., Any]:
    """A function of a batch that shares the batch out over the processes.

    ```python
    layer = mlxcone.distributed.sharded(CvxpyLayer(problem, [A, b], [x]), in_axes=(0, None))
    (x_star,) = layer(A_batch, b_value)  # in every process, all lanes
    ```

    Every process must make the same calls with the same whole batch, not with its share of one, and
    evaluate the gradients it asks for, for each waits for the others'. Arguments are compared; what
    the function holds besides, constants of a layer for example, is not. Batches need not divide
    evenly.
    Works under ``mx.grad``, ``value_and_grad``, ``vjp`` and ``jvp``; where there are several
    processes not under ``vmap`` and ``compile``, which know no communication.

    Args:
        function: takes arrays with a batch axis, or without one if shared by the batch; returns a
            tree of arrays whose first axis is that batch. A `CvxpyLayer`, a `Solver`'s ``solve``.
        in_axes: which axis of each argument is the batch, None where it is shared; one value for
            all. Unlike that of ``mx.vmap``, the function gets the axis, where it was.
        group: of processes, by default all of them (``mx.distributed.init()``).

    Returns:
        A function of the same arguments, returning what ``function`` would for the whole batch.

    Raises:
        ValueError: from the call: no argument has a batch, or batch sizes differ, in one process or
            between them, or the arguments themselves do.
        RuntimeError: from the call: it failed in another process. Where it failed, the error is the
            function's own, and none waits for the other.
    """

    def call(*arguments: mx.array, **options: Any) -> Any:
        team = mx.distributed.init() if group is None else group
        axes = in_axes if isinstance(in_axes, Sequence) else [in_axes] * len(arguments)
        alone = team.size() == 1
        lanes = _batch_size(arguments, axes) if alone else _agree(arguments, axes, options, team)
        if alone or lanes == 0:
            return function(*arguments, **options)
        shares = _Shares.of(lanes, team)
        local = []
        for array, axis in zip(arguments, axes, strict=True):
            value = _everywhere(array, team)
            local.append(value if axis is None else shares.take(value, axis))
        error, outputs = None, None
        try:
            outputs = function(*local, **options)
        except SolverError as found:
            error = shares.named(found)
        except Exception as found:
            error = found
        # Nobody may wait for a share that does not come.
        failed = _summed(mx.array(0 if error is None else 1), team).item()
        if error is not None:
            raise error
        if failed:
            raise RuntimeError(f"sharded: {failed} of {team.size()} processes failed; see theirs")
        # Now, for a process that makes no use of the answers is waited for, too.
        return evaluated(tree_map(lambda v: shares.gathered(v, team), outputs))

    return call


def solve(
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    cones: Cones | Mapping[str, Any],
    *,
    group: mx.distributed.Group | None = None,
    **settings: Any,
) -> Solution:
    """`mlxcone.solve` of a batch, shared out over the processes; see `sharded`.

    Args:
        P: as for `mlxcone.solve`.
        q: as for `mlxcone.solve`.
        A: as for `mlxcone.solve`.
        b: as for `mlxcone.solve`; where nothing has a batch, every process solves the problem.
        cones: `Cones` or an SCS dict.
        group: of processes, by default all of them.
        **settings: of the solver, by name. With ``on_failure="raise"`` each process's
            `SolverError` names the lanes of its share.

    Returns:
        Solution: of all lanes, in every process.

    Raises:
        ValueError, TypeError: as `mlxcone.solve`.
    """
    cones, data = Cones.of(cones), zip("PqAb", (P, q, A, b), strict=True)
    given = {name: problem.as_array(name, value) for name, value in data if value is not None}

    # Cones and settings are arguments for `sharded` to compare them.
    def local(*values: mx.array, cones: Cones, **settings: Any) -> Solution:
        here = {"P": None, **dict(zip(given, values, strict=True))}
        return solve_here(**here, cones=cones, **settings)

    axes = [0 if a.ndim > _RANKS[name] else None for name, a in given.items()]
    arrays = list(given.values())
    if all(axis is None for axis in axes):
        return local(*arrays, cones=cones, **settings)
    return sharded(local, axes, group)(*arrays, cones=cones, **settings)
