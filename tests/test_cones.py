"""One table of cones, one set of invariants; the reference is `mlxcone.testing`, plain NumPy."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlxcone import Cones
from mlxcone.cones.box import Box
from mlxcone.cones.exponential import Exponential
from mlxcone.cones.linear import Linear
from mlxcone.cones.power import Power
from mlxcone.cones.power_nd import PowerND
from mlxcone.cones.product import Product, uniform
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.semidefinite import Semidefinite, Semidefinite2
from mlxcone.testing import cone_rows, project_cone, project_dual_cone

Array = np.ndarray


class Block(NamedTuple):
    """An indivisible cone: its kind, first and last row, and itself as a dictionary."""

    kind: str
    lo: int
    hi: int
    scs: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A cone and the SCS dictionary that means the same, rows in the cone's own order."""

    name: str
    cone: Any
    scs: dict[str, Any]

    @property
    def rows(self) -> int:
        return cone_rows(self.scs)

    @cached_property
    def blocks(self) -> list[Block]:
        alone: list[tuple[str, dict[str, Any]]] = []
        for kind in ("z", "l", "box", "q", "s", "ep", "ed", "p", "pnd"):
            if kind == "box":
                bounds = {key: self.scs[key] for key in ("bl", "bu") if key in self.scs}
                alone += [(kind, bounds)] if bounds else []
            elif kind in ("q", "s", "p", "pnd"):
                alone += [(kind, {kind: [value]}) for value in self.scs.get(kind, [])]
            else:
                alone += [(kind, {kind: 1})] * self.scs.get(kind, 0)
        ends = np.cumsum([cone_rows(scs) for _, scs in alone])
        return [
            Block(kind, int(end) - cone_rows(scs), int(end), scs)
            for (kind, scs), end in zip(alone, ends, strict=True)
        ]


# The mix in the user's order, and in the order in which `Product` groups it.
MIX = {"z": 2, "l": 3, "q": [4, 1, 2, 4, 3, 1]}
GROUPED = {"z": 2, "l": 5, "q": [2, 3, 4, 4]}
INF = float("inf")
BOX = {"bl": [-1.0, 0.0, -INF, 0.5, 2.0], "bu": [1.0, INF, 0.5, 3.0, 2.0]}
FREE_BOX = {"bl": [-INF, -1e15], "bu": [INF, 1e20]}
CURVED = {"ep": 2, "ed": 1, "p": [0.3, -0.8, 0.5]}
LISTS = {"pnd": [[0.2, 0.3, 0.5], [0.4, 0.6], [0.1, 0.8, 0.1]]}
FULL_MIX = {"z": 1, "l": 2, **BOX, "q": [3, 1, 3], "s": [3, 1, 2, 3], **CURVED, **LISTS}
GROUPED_LISTS = {"pnd": sorted(LISTS["pnd"], key=len)}
FULL_GROUPED = {"z": 1, "l": 4, **BOX, "q": [3, 3], "s": [2, 3, 3], **CURVED, **GROUPED_LISTS}
ALPHAS = (0.02, 0.3, 0.5, 0.9, -0.02, -0.5, -0.7, -0.9)
MANY = ((0.2, 0.3, 0.5), (0.98, 0.01, 0.01), (1 / 3, 1 / 3, 1 / 3))

# Adding a cone: add a row.
TABLE = [
    Row("zero", Linear(3, 0), {"z": 3}),
    Row("nonneg", Linear(0, 4), {"l": 4}),
    Row("zero and nonneg", Linear(2, 3), {"z": 2, "l": 3}),
    Row("soc2", SecondOrder(1, 2), {"q": [2]}),
    Row("soc3x2", SecondOrder(2, 3), {"q": [3, 3]}),
    Row("soc7", SecondOrder(1, 7), {"q": [7]}),
    Row("soc40", SecondOrder(1, 40), {"q": [40]}),
    Row("psd1", Product(Cones(psd=(1,))), {"s": [1]}),
    Row("psd2", Semidefinite2(1), {"s": [2]}),
    Row("psd3x2", Semidefinite(2, 3), {"s": [3, 3]}),
    Row("psd5", Semidefinite(1, 5), {"s": [5]}),
    Row("exp", Exponential(2, dual=False), {"ep": 2}),
    Row("exp dual", Exponential(2, dual=True), {"ed": 2}),
    Row("power", Power(ALPHAS), {"p": list(ALPHAS)}),
    Row("power nd", PowerND(MANY), {"pnd": [list(alphas) for alphas in MANY]}),
    Row("power nd of 2", PowerND(((0.3, 0.7),)), {"pnd": [[0.3, 0.7]]}),
    Row("power nd of 6", PowerND(((0.5, *[0.1] * 5),)), {"pnd": [[0.5, *[0.1] * 5]]}),
    Row("box", Box(tuple(BOX["bl"]), tuple(BOX["bu"])), BOX),
    Row("box of t alone but for free rows", Box((-INF, -1e15), (INF, 1e20)), FREE_BOX),
    Row("product", Product(Cones.of(MIX)), GROUPED),
    Row("product of everything", Product(Cones.of(FULL_MIX)), FULL_GROUPED),
]
every_cone = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)


# --- points -------------------------------------------------------------------------------------


@st.composite
def points(draw: Callable[..., Any], row: Row, width: int = 32) -> Array:
    """Any point, of any scale; hypothesis likes zeros and equal entries."""
    entries = st.floats(-10.0, 10.0, width=32, allow_subnormal=False)
    v = draw(hnp.arrays(np.float64, row.rows, elements=entries))
    v[np.abs(v) < 1e-6] = 0.0
    return v * draw(st.sampled_from(SCALES))


NAMES = ("boundary", "inside", "polar", "polar boundary", "outside", "only u", "only t")


def special_rays(block: Block) -> list[Any]:
    """Six rays where faces, kinks or branches meet; none for the cones that NAMES describes."""
    rows = block.hi - block.lo
    if block.kind == "s":
        # Equal eigenvalues, of one sign and of both, none, and tiny ones beside a large one.
        k = (math.isqrt(8 * rows + 1) - 1) // 2
        eye, ones = np.eye(k), np.ones((k, k))
        signs = np.diag([1.0, -1.0, 1.0, -1.0, 1.0][:k])
        tiny = np.diag([1.0, -1e-9, 1e-9, 0.0, 0.0][:k])
        return [
            lower_triangle(matrix) for matrix in (eye, ones, signs, eye[::-1], tiny, eye - ones)
        ]
    if block.kind == "box":
        zeros, on_bounds = np.zeros(rows - 1), [-1.0, 0.0, 0.5, 0.5, 2.0][: rows - 1]
        return [[t, *s] for t in (1.0, 0.0, -1.0) for s in (zeros, on_bounds)]
    if block.kind == "pnd":
        k = rows - 1
        alternate = [(-1.0) ** i for i in range(k)]
        inward, axis, ones = [-v for v in alternate], [1.0] + [0.0] * (k - 1), [1.0] * k
        none, edge = [0.0] * k, [0.0] + [1.0] * (k - 1)
        ends = [(alternate, 0), (inward, 0), (none, 1), (axis, 1e-9), (ones, 1), (edge, -1)]
        return [[*w, z] for w, z in ends]
    # Axes, flat faces, and the curved face.
    return {
        "ep": [[-1, 0, 1], [0, 1, 1], [0, 1, -1], [1, 0, 0], [-1, -1e-9, 1], [1, 1, math.e]],
        "ed": [[-1, 0, 1], [0, 1, 1], [0, -1, 1], [1, 0, 0], [-1, 1e-9, 1], [-1, -1, 1]],
        "p": [[1, -1, 0], [-1, 1, 0], [0, 0, 1], [1, 0, 1e-9], [1, 1, 1], [0, 1, -1]],
    }.get(block.kind, [])


def lower_triangle(matrix: Array) -> list[float]:
    k, root = len(matrix), math.sqrt(2.0)
    return [matrix[i, j] * (1.0 if i == j else root) for j in range(k) for i in range(j, k)]


def second_order_corner(name: str, u: Array) -> float:
    """Where t has to be for (t, u) to be at the named place."""
    length = float(np.linalg.norm(u))
    return {
        "boundary": length,
        "inside": length + 1.0,
        "polar": -length - 1.0,
        "polar boundary": -length,
        "outside": 0.3 * length,
        "only u": 0.0,
    }.get(name, -1.0)


def corner(block: Block, name: str, rng: np.random.Generator) -> Array:
    """A point at the named place by projections of noise, and noise for all other names."""
    draws = rng.standard_normal((6, block.hi - block.lo))
    dual = [project_dual_cone(block.scs, v) for v in draws]
    # The projection of z is 0 on minus the cone itself.
    polar = [-project_cone(block.scs, v) for v in draws]
    places = {
        "boundary": max(dual, key=size),
        "inside": np.sum(dual, axis=0),
        "polar": np.sum(polar, axis=0),
        "polar boundary": max(polar, key=size),
    }
    return places.get(name, draws[0])


def corner_points(row: Row) -> dict[str, Array]:
    """Apex, boundary, inside, polar and outside, and all of them huge and tiny."""
    rng = np.random.default_rng(7)
    plain = {"apex": np.zeros(row.rows), "ones": np.ones(row.rows)}
    for name in NAMES:
        v = rng.standard_normal(row.rows)
        for block in row.blocks:
            lo, hi = block.lo, block.hi
            if special_rays(block):
                v[lo:hi] = corner(block, name, rng)
            elif block.kind == "q":
                v[lo] = second_order_corner(name, v[lo + 1 : hi])
                if name == "only t":
                    v[lo + 1 : hi] = 0.0
            else:
                length = abs(v[lo])
                at = {"boundary": 0.0, "polar boundary": 0.0, "polar": -length, "inside": length}
                v[lo] = at.get(name, v[lo])
        plain[name] = v
    rays = [(b.lo, b.hi, special_rays(b)) for b in row.blocks if special_rays(b)]
    for i, sign in itertools.product(range(6 if rays else 0), (1.0, -1.0)):
        v = rng.standard_normal(row.rows)
        for lo, hi, of_block in rays:
            v[lo:hi] = sign * np.array(of_block[i])
        plain[f"ray {sign * (i + 1):g}"] = v
    scaled = {f"{name} {c:g}": c * v for name, v in plain.items() for c in (1e12, 1e-12)}
    return plain | scaled


def is_smooth(block: Block, z: Array) -> bool:
    """Whether a step of 1e-5 is short for the reference: wider differences hardly change."""
    steps = np.eye(z.size)
    near, far = (
        np.array(
            [
                (project_dual_cone(block.scs, z + h * e) - project_dual_cone(block.scs, z - h * e))
                / (2.0 * h)
                for e in steps
            ]
        )
        for h in (1e-5, 3e-5)
    )
    # The error of the first is an eighth of the difference.
    return size(near - far) <= 1e-7


def smooth_point(block: Block, rng: np.random.Generator) -> Array:
    """Noise where the projection is smooth in a ball around; plain noise is mostly outside."""
    rows = block.hi - block.lo
    while True:
        z = rng.standard_normal(rows)
        if block.kind == "q":
            length = float(np.linalg.norm(z[1:]))
            z[0] = 1.5 * rng.uniform(-1.0, 1.0) * length
            if abs(abs(z[0]) - length) >= 0.1:
                return z
        elif special_rays(block):
            inwards = project_dual_cone(block.scs, rng.standard_normal(rows))
            outwards = project_cone(block.scs, rng.standard_normal(rows))
            z += rng.uniform(0.0, 3.0) * inwards - rng.uniform(0.0, 3.0) * outwards
            if is_smooth(block, z):
                return z
        elif block.kind == "z" or abs(z[0]) >= 0.1:
            return z


def project_dual(row: Row, z: Array, dtype: mx.Dtype = mx.float64) -> Array:
    """The product's projection of one point, (m,), or of several, (B, m)."""
    batch = np.atleast_2d(z)
    with mx.stream(mx.cpu if dtype == mx.float64 else mx.default_device()):
        out = np.array(row.cone.project_dual(mx.array(batch, dtype=dtype)))
    return out.reshape(np.shape(z)).astype(np.float64)


def dense(row: Row, z: Array, function: Callable[[mx.array], mx.array] = lambda e: e) -> Array:
    """function(D) as a matrix, (m, m), at one point, or as several, (B, m, m), at several."""
    with mx.stream(mx.cpu):
        atoms = row.cone.derivative(mx.array(np.atleast_2d(z), dtype=mx.float64))
        eye = mx.eye(row.rows, dtype=mx.float64)[None]
        found = np.array(row.cone.spectral(atoms, function, eye))
    return found.reshape(*np.shape(z)[:-1], row.rows, row.rows)


def uniform_of(cone: Any, weights: mx.array) -> mx.array:
    return cone.uniform(weights) if isinstance(cone, Product) else uniform(cone, weights)


def size(*vectors: Array) -> float:
    return max(float(np.max(np.abs(v), initial=0.0)) for v in vectors)


# --- invariants, each written once ----------------------------------------------------------------


def check_reference(row: Row, z: Array) -> None:
    expected = project_dual_cone(row.scs, z)
    assert size(project_dual(row, z) - expected) <= 1e-12 * size(z)
    narrow = z.astype(np.float32).astype(np.float64)
    expected = project_dual_cone(row.scs, narrow)
    # The rounding of eigenvalues is relative to them, and they may exceed the entries.
    largest = max([2, *row.scs.get("s", [])]) / 2
    assert size(project_dual(row, narrow, mx.float32) - expected) <= 1e-6 * largest * size(z)


def check_projection(row: Row, z: Array) -> None:
    y = project_dual(row, z)
    s, tolerance = y - z, 1e-12 * size(z)
    assert size(project_dual(row, y) - y) <= tolerance, "idempotent"
    assert size(project_dual_cone(row.scs, y) - y) <= tolerance, "y in K*"
    # Moreau: z = y - s with s in K and y's = 0.
    assert size(project_cone(row.scs, s) - s) <= tolerance, "s in K"
    assert abs(y @ s) <= 1e-12 * row.rows * size(z) ** 2, "orthogonal"


def check_derivative_is_between_0_and_1(row: Row, z: Array) -> None:
    D = dense(row, z)
    assert size(D - D.T) <= 1e-14
    values = np.linalg.eigvalsh(D)
    assert values.min() >= -1e-13
    assert values.max() <= 1.0 + 1e-13


CHECKS = [check_reference, check_projection, check_derivative_is_between_0_and_1]


@every_cone
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
def test_at_corner_points(row: Row, check: Callable[[Row, Array], None]) -> None:
    for name, z in corner_points(row).items():
        try:
            check(row, z)
        except AssertionError as error:
            raise AssertionError(f"at {name}: {z}") from error


@every_cone
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
@given(data=st.data())
def test_at_drawn_points(row: Row, check: Callable[[Row, Array], None], data: Any) -> None:
    check(row, data.draw(points(row)))


@every_cone
@given(data=st.data())
def test_nonexpansive(row: Row, data: Any) -> None:
    u, v = data.draw(points(row)), data.draw(points(row))
    moved = np.linalg.norm(project_dual(row, u) - project_dual(row, v))
    assert moved <= np.linalg.norm(u - v) + 1e-13 * size(u, v)


@every_cone
@given(data=st.data())
def test_derivative_is_the_limit_of_differences(row: Row, data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    z = np.concatenate([smooth_point(block, rng) for block in row.blocks])
    h = 1e-5
    steps = h * np.eye(row.rows)
    differences = (project_dual(row, z + steps) - project_dual(row, z - steps)).T / (2.0 * h)
    np.testing.assert_allclose(dense(row, z), differences, rtol=0, atol=1e-7)


@every_cone
@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-7])
def test_spectral_is_the_matrix_function(row: Row, eps: float) -> None:
    corners = corner_points(row)
    z = np.stack(list(corners.values()))
    values, vectors = np.linalg.eigh(dense(row, z))
    weights = values / (1.0 + eps - values)
    expected = (vectors * weights[:, None, :]) @ vectors.swapaxes(-1, -2)
    found = dense(row, z, lambda e: e / ((1.0 + eps) - e))
    for name, difference in zip(corners, found - expected, strict=True):
        # An eigenvalue's last digit is amplified by 1 / eps^2.
        assert size(difference) <= 1e-13 / eps**2, name


@every_cone
def test_spectral_takes_several_columns_and_one_matrix_for_all_lanes(row: Row) -> None:
    rng = np.random.default_rng(1)
    z, v = rng.standard_normal((3, row.rows)), rng.standard_normal((1, row.rows, 2))
    with mx.stream(mx.cpu):
        atoms = row.cone.derivative(mx.array(z, dtype=mx.float64))
        found = np.array(row.cone.spectral(atoms, lambda e: e, mx.array(v, dtype=mx.float64)))
    assert found.shape == (3, row.rows, 2)
    expected = np.stack([dense(row, lane) @ v[0] for lane in z])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@every_cone
def test_batched_equals_stacked(row: Row) -> None:
    batch = np.stack(list(corner_points(row).values()))
    alone = np.stack([project_dual(row, z) for z in batch])
    np.testing.assert_array_equal(project_dual(row, batch), alone)
    np.testing.assert_array_equal(dense(row, batch), np.stack([dense(row, z) for z in batch]))


@every_cone
def test_one_lane_with_nan_stays_alone(row: Row) -> None:
    rng = np.random.default_rng(2)
    batch = rng.standard_normal((3, row.rows))
    expected = project_dual(row, batch)
    batch[1] = np.nan
    found = project_dual(row, batch)
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert np.isnan(found[1]).all()


@every_cone
@given(data=st.data())
def test_uniform_scaling_keeps_membership(row: Row, data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weights = 2.0 ** rng.integers(-10, 10, row.rows)
    with mx.stream(mx.cpu):
        equal = np.array(uniform_of(row.cone, mx.array(weights[None], dtype=mx.float64)))[0]
    for _, lo, hi, _ in row.blocks:
        assert (equal[lo:hi] == weights[lo:hi].max()).all()
    for project in (project_cone, project_dual_cone):
        v = equal * project(row.scs, rng.standard_normal(row.rows))
        assert size(project(row.scs, v) - v) <= 1e-12 * size(v)


@every_cone
def test_signature_moves_as_the_derivative_moves(row: Row) -> None:
    """Equal D, equal signature; another D, another signature, by a comparable amount."""
    rng = np.random.default_rng(3)
    batch = np.concatenate([list(corner_points(row).values()), rng.standard_normal((30, row.rows))])
    with mx.stream(mx.cpu):
        atoms = row.cone.derivative(mx.array(batch, dtype=mx.float64))
        signatures = np.array(row.cone.signature(atoms))
    assert signatures.shape[0] == len(batch)
    orders = [*row.scs.get("s", []), *row.scs.get("pnd", [])]
    # That of these cones is D on two fixed vectors, which see some turns of D only faintly: a 20th
    # of them at worst, among 10^5 random pairs.
    assert size(signatures) <= (2.0 if orders else 1.0) + 1e-12
    faintest = 30.0 if orders else 3.0
    matrices = dense(row, batch)
    for i in range(len(batch)):
        moved = np.max(np.abs(signatures[:i] - signatures[i]), axis=1, initial=0.0)
        turned = np.max(np.abs(matrices[:i] - matrices[i]), axis=(1, 2), initial=0.0)
        # Directions of u do not matter where D is 0 or I.
        assert (turned <= faintest * moved + 1e-12).all()
        # A cone of two rows carries a third eigenvalue that D does not have.
        if 2 not in row.scs.get("q", []):
            assert (moved <= 10.0 * row.rows * turned + 1e-7).all()


# --- the product ----------------------------------------------------------------------------------

DICTS = [
    {"z": 2},
    {"q": [3, 2]},
    {"q": [1]},
    {"l": 2, "q": [1, 1]},
    {"q": [5, 1, 5]},
    MIX,
    FULL_MIX,
]


@pytest.mark.parametrize("scs", DICTS, ids=str)
def test_order_and_inverse_undo_each_other(scs: dict[str, Any]) -> None:
    product = Product(Cones.of(scs))
    if product.order is None:
        assert product.inverse is None
        return
    assert product.inverse is not None
    rows = list(range(product.rows))
    assert sorted(product.order) == rows
    assert [product.order[i] for i in product.inverse] == rows
    assert [product.inverse[i] for i in product.order] == rows


def test_rows_stay_where_nothing_has_to_move() -> None:
    assert Product(Cones(zero=1, nonneg=2, soc=(2, 3, 3))).order is None
    assert Product(Cones(soc=(3, 2))).order == [3, 4, 0, 1, 2]


@pytest.mark.parametrize("scs", DICTS, ids=str)
def test_product_projects_in_the_users_order(scs: dict[str, Any]) -> None:
    product = Product(Cones.of(scs))
    v = np.random.default_rng(0).standard_normal(product.rows)
    order = product.order or list(range(product.rows))
    inverse = product.inverse or order
    internal = mx.array(v[None, order], dtype=mx.float64)
    with mx.stream(mx.cpu):
        dual = np.array(product.project_dual(internal))[0, inverse]
        primal = np.array(product.project(internal))[0, inverse]
    np.testing.assert_allclose(dual, project_dual_cone(scs, v), rtol=0, atol=1e-14)
    np.testing.assert_allclose(primal, project_cone(scs, v), rtol=0, atol=1e-14)


def test_equal_cones_share_a_group() -> None:
    groups = Product(Cones.of(MIX)).groups
    assert groups == [Linear(2, 5), SecondOrder(1, 2), SecondOrder(1, 3), SecondOrder(2, 4)]


def test_equal_cones_of_every_kind_share_a_group() -> None:
    # The powers stay in one group as they are; matrices of order 1 are inequalities.
    assert Product(Cones.of(FULL_MIX)).groups == [
        Linear(1, 4),
        Box(tuple(BOX["bl"]), tuple(BOX["bu"])),
        SecondOrder(2, 3),
        Semidefinite2(1),
        Semidefinite(2, 3),
        Exponential(2, dual=False),
        Exponential(1, dual=True),
        Power((0.3, -0.8, 0.5)),
        PowerND(((0.4, 0.6),)),
        PowerND(((0.2, 0.3, 0.5), (0.1, 0.8, 0.1))),
    ]


def test_with_equalities_puts_equality_rows_first() -> None:
    extended = Product(Cones.of(MIX)).with_equalities(3)
    assert extended.groups == [Linear(5, 5), *Product(Cones.of(MIX)).groups[1:]]
    assert extended.order is None


def test_no_cones_at_all() -> None:
    product = Product(Cones())
    empty = mx.zeros((2, 0), dtype=mx.float32)
    assert product.rows == 0
    assert product.project_dual(empty).shape == (2, 0)
    assert product.project(empty).shape == (2, 0)
    assert product.signature(product.derivative(empty)).shape[1] == 0


# --- what the user writes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        ({}, Cones()),
        ({"z": 1, "l": 2, "q": [3, 4]}, Cones(zero=1, nonneg=2, soc=(3, 4))),
        ({"f": 1}, Cones(zero=1)),
        ({"zero": 1, "nonneg": 2, "soc": [3]}, Cones(zero=1, nonneg=2, soc=(3,))),
        ({"q": 3}, Cones(soc=(3,))),
        ({"q": (3,), "l": np.int64(2)}, Cones(nonneg=2, soc=(3,))),
        ({"q": np.array([3, 2])}, Cones(soc=(3, 2))),
        ({"l": 2.0}, Cones(nonneg=2)),
        ({"l": 1, "s": [], "ep": 0, "p": [], "bu": np.zeros(0), "bl": None}, Cones(nonneg=1)),
        ({"bl": [0.0], "bu": np.array([1.0])}, Cones(box=((0.0,), (1.0,)))),
        ({"s": 3, "ep": 1, "ed": np.int64(2)}, Cones(psd=(3,), exp=1, exp_dual=2)),
        ({"p": np.array([0.5, -0.25])}, Cones(power=(0.5, -0.25))),
        (
            {"psd": [1], "exp": 1, "exp_dual": 1, "power": 0.5},
            Cones(0, 0, None, (), (1,), 1, 1, (0.5,)),
        ),
        ({"box": ([0.0], [1.0])}, Cones(box=((0.0,), (1.0,)))),
        ({"pnd": [np.array([0.5, 0.5])]}, Cones(power_nd=((0.5, 0.5),))),
        ({"power_nd": np.array([[0.5, 0.5]]), "pnd": None}, Cones(power_nd=((0.5, 0.5),))),
        ({"pnd": []}, Cones()),
    ],
    ids=str,
)
def test_dictionaries_are_understood(given_as: dict[str, Any], expected: Cones) -> None:
    cones = Cones.of(given_as)
    assert cones == expected
    assert hash(cones) == hash(expected)


def test_cones_pass_through_unchanged() -> None:
    cones = Cones(zero=1, soc=[2])  # type: ignore[arg-type]
    assert Cones.of(cones) is cones
    assert cones.soc == (2,)


@pytest.mark.parametrize(
    "bad",
    [
        {"l": "many"},
        {"l": float("inf")},
        {"l": np.array([2])},
        {"z": 1, "f": 2},
        {"z": 1, "zero": 2},
    ],
    ids=str,
)
def test_hopeless_sizes_are_value_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cones"):
        Cones.of(bad)


@pytest.mark.parametrize(
    "given_as",
    [
        {"q": np.int64(3), "z": None},
        {"q": None, "s": None},
        {"q": 0},
        {"s": 3, "p": 0.5},
        {"p": 0, "bl": None, "ep": None},
        {"ed": 2, "bl": [0.0], "bu": 1.0},
        MIX,
        FULL_MIX,
    ],
    ids=str,
)
def test_dictionaries_mean_what_they_mean_to_the_verifier(given_as: dict[str, Any]) -> None:
    assert Cones.of(given_as).rows == cone_rows(given_as)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"l": -1}, "'nonneg' must be a non-negative integer, got -1"),
        ({"l": 1.5}, "'nonneg' must be a non-negative integer, got 1.5"),
        ({"z": True}, "'zero' must be a non-negative integer, got True"),
        ({"q": [3, -2]}, "'soc' must be a non-negative integer, got -2"),
        ({"q": [3, 0]}, "at least one row, got 0"),
        ({"cs": [2]}, "'cs' is not supported; known"),
        ({"s": [0]}, "semidefinite cone has at least one row, got 0"),
        ({"ep": -1}, "'exp' must be a non-negative integer, got -1"),
        ({"p": [0.3, 1.0]}, r"'power' must lie in \(0, 1\) or \(-1, 0\), got 1.0"),
        ({"pnd": [[0.3, 0.6]]}, "'power_nd' must be lists of two or more positive exponents"),
        ({"pnd": [[1.2, -0.2]]}, r"of sum 1, got \[1.2, -0.2\]"),
        ({"pnd": [[1.0]]}, r"got \[1.0\]"),
        ({"pnd": [0.5, 0.5]}, "got 0.5"),
        ({"pnd": [[float("nan"), 0.5]]}, r"got \[nan, 0.5\]"),
        ({"bl": [0.0], "bu": [-1.0]}, "'box' has a lower bound that is not at most"),
        ({"bl": [0.0], "bu": [1.0, 2.0]}, "'box' has 1 lower and 2 upper bounds"),
        ({"bl": [0.0]}, "a box has 'bl' and 'bu'"),
        ({"k": 1}, "unknown cone 'k'; known: z, l, .* bl with bu; or zero, .*, power_nd"),
        ([3, 2], "expected Cones or a dict, got list"),
        (None, "expected Cones or a dict, got NoneType"),
    ],
    ids=str,
)
def test_bad_cones_are_named(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cones.of(bad)
