"""Anything at all at the public entry points: an answer that is right, or an error that says what.

Hypothesis draws valid calls and spoils some of their arguments, in type, shape or value. A call
returns, or raises one of the documented exceptions with a message of ours that names the argument.
What comes back as solved, infeasible or unbounded is judged by `mlxcone.testing`, plain NumPy. 300
calls here, 10,000 with ``MLXCONE_TEST_PROFILE=thorough``.
"""

from __future__ import annotations

import functools
import math
import os
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxcone
from cvxpylayers_mlx import CvxpyLayer
from mlxcone.testing import verify_infeasible, verify_solution, verify_unbounded

CALLS = 10_000 if os.environ.get("MLXCONE_TEST_PROFILE") == "thorough" else 300
DOCUMENTED = (ValueError, TypeError, mlxcone.SolverError)
# What our messages begin with; those of MLX and NumPy name functions of theirs.
OURS = re.compile(
    r"(parameter \d+|warm_start(\.\w)?|settings|cones|solver|solver_args|[PqAb])\b.*"
    r"(:|must|expected)|"
    r"inconsistent batch sizes|unknown solver argument|no solution for \d+ problem|"
    r"A tensor must be provided|Invalid parameter (shape|dimensionality) for parameter|"
    r"Inconsistent batch sizes",
    re.DOTALL,
)
# The whole ladder is not what is tried here.
BRIEF = {"max_iters": 60, "interior_iters": 25, "multiplier_iters": 5}
TOLERANCE = {mx.float32: 1e-4, mx.float64: 1e-7}


class Unlike:
    """Has the attributes of an array and none of their meaning."""

    shape, ndim, dtype = "shape", None, 7

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("not an array after all")

    def __len__(self) -> int:
        return 2


def junk() -> st.SearchStrategy[Any]:
    """What nobody should pass."""
    fixed: list[Any] = [
        None,
        True,
        math.nan,
        -math.inf,
        10**400,
        1j,
        "abc",
        b"12",
        "3",
        Fraction(1, 3),
        object(),
        Unlike(),
        ...,
        {},
        {"x": 1},
        {1.0, 2.0},
        (),
        [],
        [[]],
        [1.0, [2.0, 3.0]],
        [[1.0], [2.0, 3.0]],
        [None, 1.0],
        ["1", "2"],
        lambda x: x,
        iter([1.0, 2.0]),
        np.datetime64("2020-01-01"),
        np.array(["a", "b"]),
        np.array([object()]),
        np.array([(1.0, 2)], dtype=[("a", "f8"), ("b", "i4")]),
        np.zeros((0, 3)),
        np.zeros((2, 0)),
        np.zeros((1, 1, 1, 1, 1)),
        mx.array([1.0 + 2.0j]),
        mx.zeros((0,)),
        mx.array(3.0),
        sp.csr_matrix(np.eye(2, 3)),
        np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    ]
    return st.sampled_from(fixed)


def spoil(draw: st.DrawFn, value: np.ndarray) -> Any:
    """The same array in another shape, type or with other values; some of it is still valid."""
    shape = value.shape
    flat = max(value.size, 1)
    if value.dtype not in (np.float32, np.float64, np.complex128):
        return draw(junk())  # spoiled before
    ways: dict[str, Callable[[], Any]] = {
        "junk": lambda: draw(junk()),
        "longer": lambda: np.concatenate([value, value[..., :1]], axis=-1) if shape else [1.0, 2.0],
        "shorter": lambda: value[..., :-1] if shape else [],
        "deeper": lambda: value[None],
        "twice deeper": lambda: value[None, None],
        "batch": lambda: np.repeat(value[None], draw(st.integers(0, 3)), axis=0),
        "row": lambda: value[0] if shape and shape[0] else value,
        "turned": lambda: value.T,
        "scalar": lambda: float(value.flat[0]) if value.size else 0.0,
        "hole": lambda: np.where(
            np.arange(value.size).reshape(shape) == draw(st.integers(0, flat)),
            draw(st.sampled_from([math.nan, math.inf, -math.inf])),
            value,
        ),
        "scaled": lambda: value * 10.0 ** draw(st.integers(-300, 300)),
        "noise": lambda: value + np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape),
        "zeros": lambda: 0.0 * value,
        "opposite": lambda: -value,
        "whole": lambda: np.rint(value).astype(draw(st.sampled_from(["int8", "int64", "uint32"]))),
        "truth": lambda: value > 0,
        "complex": lambda: value.astype(complex),
        "half": lambda: value.astype(np.float16),
        "extended": lambda: value.astype(np.longdouble),
        "object": lambda: value.astype(object),
        "text": lambda: value.astype(str),
        "list": value.tolist,
        "tuple": lambda: tuple(value) if shape else value,
        "sparse": lambda: sp.csc_array(np.atleast_2d(value)) if value.ndim < 3 else value,
        "swapped bytes": lambda: value.astype(value.dtype.newbyteorder()),
        "strided": lambda: np.repeat(value, 2, axis=-1)[..., ::2] if shape else value,
        "backwards": lambda: value[..., ::-1] if shape else value,
        "read only": lambda: np.frombuffer(value.tobytes(), value.dtype).reshape(shape),
        "mlx": lambda: mlx(value, draw(st.sampled_from(MLX_TYPES))),
        "lazy": lambda: mx.exp(mlx(value, mx.float32)),
    }
    return ways[draw(st.sampled_from(sorted(ways)))]()


def mlx(value: np.ndarray, dtype: mx.Dtype) -> mx.array:
    # A copy: what is contiguous to NumPy may have negative strides.
    host = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    return mx.array(host, dtype=dtype)


MLX_TYPES = (
    *(mx.float32, mx.float64, mx.float16, mx.bfloat16, mx.complex64),
    *(mx.int8, mx.int32, mx.uint64, mx.bool_),
)
CONES: tuple[dict[str, Any], ...] = (
    {"l": 4},
    {"z": 1, "l": 2},
    {"q": [3], "l": 1},
    {"z": 1, "s": [2]},
    {"bl": [-1.0, -2.0], "bu": [1.0, 2.0]},
    {"ep": 1},
    {"p": [0.3]},
    {"l": 0},
)


def bad_cones() -> st.SearchStrategy[Any]:
    """Dictionaries of cones with wrong names, sizes and types."""
    keys = st.sampled_from(["z", "l", "q", "s", "ep", "ed", "p", "pnd", "bl", "bu", "cs", "x", 3])
    sizes = st.one_of(
        st.integers(-2, 3),
        st.lists(st.integers(-1, 3), max_size=2),
        st.floats(allow_nan=True),
        st.lists(st.floats(-2.0, 2.0), max_size=2),
        junk(),
    )
    return st.dictionaries(keys, sizes, max_size=3) | junk()


NAMES = [*mlxcone.Settings.__dataclass_fields__, "eps", "max_iter", "warm", ""]
LONG = ("max_iters", "newton_iters", "interior_iters", "multiplier_iters", "fixed_iters")


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Settings by name, most of them with values of some other type or range."""
    found: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True)):
        numbers = st.integers(-1, 3) if name in LONG else st.integers(-2, 30)
        value = draw(numbers | st.floats(-1.0, 2.0) | junk())
        if name == "on_failure" and draw(st.booleans()):
            value = draw(st.sampled_from(["raise", "nan", "return"]))
        found[name] = value
    return found


def rows(cones: dict[str, Any]) -> int:
    return mlxcone.Cones.of(cones).rows


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Any], Any]:
    """P, q, A, b and cones, with up to two of them spoiled."""
    cones: Any = draw(st.sampled_from(CONES))
    n, m = draw(st.integers(0, 3)), rows(cones)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    root = rng.normal(size=(n, n))
    data: list[Any] = [
        root @ root.T,
        rng.normal(size=n),
        rng.normal(size=(m, n)),
        rng.uniform(0.5, 2.0, size=m),
    ]
    if draw(st.booleans()):
        data = [v.astype(np.float32) for v in data]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, 4))
        if place == 4:
            cones = draw(bad_cones())
        elif isinstance(data[place], np.ndarray):
            data[place] = spoil(draw, data[place])
    if draw(st.integers(0, 3)) == 0:
        data[0] = None
    return data, cones


def attempt(call: Callable[[], Any]) -> Any:
    """What the call returns, or None after a documented exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, about what it is made to convert
            return call()
    except DOCUMENTED as error:
        assert OURS.match(str(error)), f"{type(error).__name__}: {error}"
        return None


def numbers(array: mx.array) -> np.ndarray:
    """In float64; NumPy has no bfloat16."""
    known = array if array.dtype == mx.float64 else array.astype(mx.float32)
    return np.array(known, dtype=np.float64)


def lane(array: Any, number: int, ndim: int) -> np.ndarray:
    """One lane of what was passed, as the numbers that were meant."""
    value = array.toarray() if hasattr(array, "toarray") else array
    wide = numbers(mlxcone.as_array("", value))
    return wide[number] if wide.ndim > ndim else wide


def rounding(P: np.ndarray | None, A: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """What rounding x and y to their dtype does to a residual, where large terms cancel."""
    rows = np.abs(A) @ np.abs(x)
    columns = np.abs(A).T @ np.abs(y) + (0.0 if P is None else np.abs(P) @ np.abs(x))
    return float(np.finfo(x.dtype).eps) * max(largest(rows), largest(columns))


def judge(
    data: list[Any], cones: Any, found: mlxcone.Solution, blotted: bool, rounded: float
) -> None:
    """Shapes agree, and what is claimed of data with a relative error ``rounded`` is so."""
    tolerance = TOLERANCE[found.x.dtype] + 2.0 * rounded
    status: Any = found.info.status.tolist()
    assert found.y.shape == found.s.shape
    for number, code in enumerate(status if isinstance(status, list) else [status]):
        mlxcone.Status(code)
        P, q, A, b = (
            None if part is None else lane(part, number, ndim)
            for part, ndim in zip(data, (2, 1, 2, 1), strict=True)
        )
        x, y, s = (np.array(v[number] if found.x.ndim == 2 else v) for v in found[:3])
        # Beyond float32 it holds the numbers of the problem only roughly, or not at all.
        if found.x.dtype == mx.float32 and max(largest(v) for v in (P, q, A, b, x, y, s)) > 1e30:
            continue
        if blotted and code <= 0:
            assert all(np.isnan(v).all() for v in (x, y, s))
        elif code == mlxcone.Status.SOLVED:
            allowed = tolerance + rounding(P, A, x, y)
            assert verify_solution(P, q, A, b, cones, x, y, s).worst <= allowed
        elif code == mlxcone.Status.INFEASIBLE:
            assert verify_infeasible(unit(A), unit(b), cones, y) <= tolerance * scale(y, b)
        elif code == mlxcone.Status.UNBOUNDED:
            parts = [None if P is None else unit(P), unit(q), unit(A)]
            assert verify_unbounded(*parts, cones, x) <= tolerance * scale(x, q)
        elif code == mlxcone.Status.FAILED:
            assert all(np.isnan(v).all() for v in (x, y, s))


def unit(array: np.ndarray) -> np.ndarray:
    """In units of its largest entry: which ones are used is no matter of feasibility."""
    return array / (largest(array) or 1.0)


def scale(ray: np.ndarray, cost: np.ndarray) -> float:
    """Of a ray on which a cost of units is -1: what float32 can say of it is relative to that."""
    return max(1.0, largest(ray) / abs(float(unit(cost) @ ray)))


def largest(array: Any) -> float:
    return float(np.max(np.abs(array), initial=0.0)) if array is not None else 0.0


@st.composite
def warm_starts(draw: st.DrawFn) -> Any:
    if draw(st.integers(0, 3)):
        return None
    sizes = draw(st.lists(st.integers(0, 4), min_size=0, max_size=4))
    return draw(st.sampled_from([[np.zeros(k) for k in sizes], sizes])) if sizes else draw(junk())


@settings(max_examples=CALLS // 2)
@given(programs(), options(), warm_starts(), st.sampled_from(["solve", "solver", "update"]))
def test_programs(program: tuple[list[Any], Any], given: dict, start: Any, way: str) -> None:
    (P, q, A, b), cones = program

    def call() -> Any:
        chosen = {**BRIEF, **given}
        if way == "solve":
            return mlxcone.solve(P, q, A, b, cones, warm_start=start, **chosen)
        solver = mlxcone.Solver(P, A, cones, **chosen)
        if way == "update":
            solver.update(A=A)
        return solver.solve(q, b, warm_start=start)

    found = attempt(call)
    if found is not None and not {"eps", "eps_abs", "eps_rel", "eps_infeas"} & set(given):
        blotted, rounded = given.get("on_failure") == "nan", given.get("data_rounding", 0.0)
        judge([P, q, A, b], cones, found, blotted, float(rounded))


@settings(max_examples=CALLS // 10)
@given(bad_cones())
def test_cones(cones: Any) -> None:
    found = attempt(lambda: mlxcone.Cones.of(cones))
    assert found is None or found.rows >= 0


@settings(max_examples=CALLS // 10)
@given(options(), st.none() | junk())
def test_settings(given: dict[str, Any], whole: Any) -> None:
    found = attempt(lambda: mlxcone.Settings().override(given))
    assert found is None or hash(found) == hash(found.override({}))
    if whole is not None:
        with pytest.raises(TypeError, match="settings: expected"):
            mlxcone.solve(None, [1.0], [[1.0]], [1.0], {"z": 1}, settings=whole)


def nonnegative_least_squares() -> tuple[CvxpyLayer, list[np.ndarray]]:
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    return CvxpyLayer(problem, [A, b], [x]), [np.eye(3, 2) + 0.1, np.array([1.0, -1.0, 0.5])]


def attributes() -> tuple[CvxpyLayer, list[np.ndarray]]:
    X = cp.Variable((2, 2), symmetric=True)
    C, w, t = cp.Parameter((2, 2), symmetric=True), cp.Parameter(nonneg=True), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C) + w * cp.trace(X)), [cp.diag(X) >= t])
    return CvxpyLayer(problem, [C, w, t], [X]), [np.eye(2), np.array(0.5), np.zeros(2)]


def geometric() -> tuple[CvxpyLayer, list[np.ndarray]]:
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a, k = cp.Parameter(pos=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(x / y + a * y), [x >= 0.5, y**k <= 3.0])
    return CvxpyLayer(problem, [a, k], [x, y], gp=True), [np.array(2.0), np.array(1.5)]


def complex_projection() -> tuple[CvxpyLayer, list[np.ndarray]]:
    z, c = cp.Variable(2, complex=True), cp.Parameter(2, complex=True)
    problem = cp.Problem(cp.Minimize(cp.norm(z - c)), [cp.abs(z) <= 1.0])
    return CvxpyLayer(problem, [c], [z]), [np.array([1.0 + 2.0j, 0.5j])]


LAYERS = (nonnegative_least_squares, attributes, geometric, complex_projection)


@functools.cache
def built(which: int) -> tuple[CvxpyLayer, list[np.ndarray]]:
    return LAYERS[which]()


@st.composite
def layer_calls(draw: st.DrawFn) -> tuple[int, list[Any]]:
    """A layer and values for its parameters, up to two of them spoiled, one missing or too many."""
    which = draw(st.integers(0, len(LAYERS) - 1))
    values: list[Any] = list(built(which)[1])
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(values) - 1))
        if isinstance(values[place], np.ndarray):
            values[place] = spoil(draw, values[place])
    change = draw(st.integers(0, 9))
    if change == 0:
        values.pop()
    elif change == 1:
        values.append(draw(junk()))
    return which, values


@settings(max_examples=CALLS // 5)
@given(layer_calls(), options() | junk(), st.booleans())
def test_layer_calls(call: tuple[int, list[Any]], given: Any, keep: bool) -> None:
    which, values = call
    layer = built(which)[0]
    how = {"on_failure": "nan"} if keep else {}
    chosen = {**BRIEF, **how, **given} if isinstance(given, dict) else given
    found = attempt(lambda: layer.solve(*values, solver_args=chosen))
    if found is None:
        return
    solved = np.atleast_1d(np.array(found.info.status)) > 0
    for value in found.variables:
        each = numbers(value).reshape(solved.size, -1)
        assert np.isfinite(each[solved]).all()
    strict = not isinstance(given, dict) or not any("eps" in str(name) for name in given)
    if which == 0 and strict:
        A, b = (mlxcone.as_array("", v) for v in values)
        if max(largest(numbers(A)), largest(numbers(b))) < 1e10:
            check_least_squares(A, b, found, solved)


def check_least_squares(A: mx.array, b: mx.array, found: Any, solved: np.ndarray) -> None:
    """x >= 0, its gradient g >= 0, and x g = 0, relative to the problem."""
    x = numbers(found.variables[0]).reshape(solved.size, -1)
    status = np.atleast_1d(np.array(found.info.status))
    off = max(1e-4, 4.0 * mx.finfo(found.variables[0].dtype).eps)
    for number in np.flatnonzero(status == 1):
        A_, b_ = lane(A, number, 2), lane(b, number, 1)
        g = A_.T @ (A_ @ x[number] - b_)
        size = 1.0 + max(largest(A_) ** 2 * largest(x[number]), largest(A_) * largest(b_))
        assert min(x[number].min(), 0.0) >= -off * (1.0 + largest(x[number]))
        assert g.min() >= -off * size
        assert np.abs(x[number] * g).max() <= off * size * (1.0 + largest(x[number]))


@settings(max_examples=CALLS // 10)
@given(st.data())
def test_layer_construction(data: st.DataObject) -> None:
    """Wrong lists of parameters and variables, problems, solvers and settings."""
    x, a = cp.Variable(2), cp.Parameter(2)
    other, integer = cp.Variable(), cp.Variable(2, integer=True)
    good: dict[str, Any] = {
        "problem": cp.Problem(cp.Minimize(cp.sum_squares(x - a))),
        "parameters": [a],
        "variables": [x],
        "solver": None,
        "gp": False,
        "verbose": False,
        "solver_args": {},
    }
    bad: dict[str, list[Any]] = {
        "problem": [
            None,
            "problem",
            x,
            cp.Problem(cp.Minimize(cp.sum_squares(x) * cp.sum(a)), [a @ x >= 1]),
            cp.Problem(cp.Maximize(cp.sum_squares(x - a))),
            cp.Problem(cp.Minimize(cp.sum_squares(integer - a))),
            cp.Problem(cp.Minimize(cp.sum(a))),
        ],
        "parameters": [None, a, [], [a, a], [x], [cp.Parameter(2)], "a", [None], {a: 1}],
        "variables": [None, x, [other], [a], "x", [None], [3], {x: 1}, []],
        "solver": ["NOSUCH", "", 3, ["SCS"], True],
        "gp": [True, None],
        "verbose": ["no", None, 7],
        "solver_args": [{"nosuch": 1}, {"eps": "1"}, 3, "eps", [1], {"warm_start": 5}, {3: 4}],
    }
    for name in data.draw(st.lists(st.sampled_from(sorted(bad)), max_size=2, unique=True)):
        good[name] = data.draw(st.sampled_from(bad[name]))
    try:
        layer = CvxpyLayer(**good)
    except (AssertionError, ValueError, TypeError, NotImplementedError) as error:
        message = str(error)
        assert re.search(
            r"([Pp]roblem|parameters|variables|variable|Variable|solver|solver_args|settings|gp|"
            r"unknown solver argument|verbose|warm_start)",
            message,
        ), f"{type(error).__name__}: {message}"
        return
    found = attempt(lambda: layer(mx.array([1.0, 2.0])))
    if found:
        assert np.allclose(np.array(found[0]), [1.0, 2.0], atol=1e-5)
