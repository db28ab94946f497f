"""The test tools must be right before anything is tested with them.

Known answers pass, every kind of wrong answer is caught, and two independent solvers agree with
the manufactured problems.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlxcone.testing import (
    Instance,
    Structure,
    assert_infeasible,
    assert_solved,
    assert_unbounded,
    claims,
    cone_rows,
    manufacture,
    project_cone,
    project_dual_cone,
    scaling,
    strategies,
    verify_infeasible,
    verify_solution,
    verify_unbounded,
)
from mlxcone.testing.structure import flatten

sparse = pytest.importorskip("scipy.sparse")

MIXED = {"z": 2, "l": 4, "q": [1, 2, 4], "s": [1, 3]}
BOX = {"bl": [-1.0, 0.0, -np.inf, 0.5, 2.0], "bu": [1.0, np.inf, 0.0, 1e9, 2.0]}
EVERYTHING = {**MIXED, **BOX, "ep": 2, "ed": 1, "p": [0.3, -0.8, 0.5]}
ALL_KINDS = ("z", "l", "box", "q", "s", "ep", "ed", "p")
BOUNDED = settings(max_examples=50, deadline=None, derandomize=True)
CONES = [
    {"z": 3},
    {"l": 4},
    BOX,
    {"q": [1]},
    {"q": [2]},
    {"q": [5, 3]},
    {"s": [1]},
    {"s": [4]},
    {"ep": 1},
    {"ed": 1},
    {"p": [0.01, 0.3, 0.5, 0.9]},
    {"p": [-0.01, -0.3, -0.5, -0.9]},
    EVERYTHING,
]


def solved_instance(seed=0, n=6, cones=None, **options):
    return manufacture.feasible(np.random.default_rng(seed), n, cones or MIXED, **options)


# --- projections --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("cones", CONES, ids=str)
def test_projections_satisfy_moreau(cones, scale):
    rng = np.random.default_rng(0)
    for _ in range(30):
        v = scale * rng.standard_normal(cone_rows(cones))
        s, y = project_cone(cones, v), project_dual_cone(cones, -v)
        # v = s - y with s in K, y in K* and s'y = 0 is what makes s the nearest point.
        np.testing.assert_allclose(s - y, v, rtol=0, atol=1e-13 * scale)
        assert abs(s @ y) < 1e-12 * scale**2
        np.testing.assert_allclose(project_cone(cones, s), s, rtol=0, atol=1e-13 * scale)
        np.testing.assert_allclose(project_dual_cone(cones, y), y, rtol=0, atol=1e-13 * scale)
        other = project_cone(cones, rng.standard_normal(v.size))
        # No other point of K is nearer (K and K* make an acute pair).
        assert other @ y > -1e-12 * scale * (1.0 + np.linalg.norm(other))


def exponential_rays(rng, count):
    """Boundary rays of the exponential cone and normals there, of length one, (count, 3) each."""
    rho = rng.standard_normal(count) * np.where(rng.random(count) < 0.5, 3.0, 1e4)
    grows, falls = np.exp(np.minimum(rho, 0.0)), np.exp(-np.maximum(rho, 0.0))
    rays = np.stack([rho * falls, falls, grows], axis=-1)
    normals = np.stack([grows, (1.0 - rho) * grows, -falls], axis=-1)
    return unit(rays), unit(normals)


def power_rays(rng, count, a):
    """The same for the power cone of exponent a."""
    ratio = rng.standard_normal(count) * np.where(rng.random(count) < 0.5, 2.0, 20.0)
    x, y = np.exp((1.0 - a) * ratio), np.exp(-a * ratio)
    sign = rng.choice([-1.0, 1.0], count)
    normals = np.stack([-a / x, (a - 1.0) / y, sign], axis=-1)
    return unit(np.stack([x, y, sign], axis=-1)), unit(normals)


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


@pytest.mark.parametrize("exponent", [None, 0.01, 0.3, 0.5, 0.9], ids=str)
def test_rays_and_their_normals_are_projected_apart(exponent):
    """Whatever the lengths, ray + normal has the ray for its projection, from the definition."""
    rng = np.random.default_rng(1)
    if exponent is None:
        (rays, normals), cone, dual = exponential_rays(rng, 500), {"ep": 1}, {"ed": 1}
    else:
        rays, normals = power_rays(rng, 500, exponent)
        cone, dual = {"p": [exponent]}, {"p": [-exponent]}
    for ray, normal in zip(rays, normals, strict=True):
        s, y = ray * 10.0 ** rng.uniform(-9, 0), -normal * 10.0 ** rng.uniform(-9, 0)
        scale = 10.0 ** rng.uniform(-12, 12)
        v, tolerance = scale * (s - y), 1e-14 * scale
        for project, one in ((project_cone, cone), (project_dual_cone, dual)):
            np.testing.assert_allclose(project(one, v), scale * s, rtol=0, atol=tolerance)
        for project, one in ((project_dual_cone, cone), (project_cone, dual)):
            np.testing.assert_allclose(project(one, -v), scale * y, rtol=0, atol=tolerance)


def inside_exponential(x, y, z):
    return min(y, z) > 0.0 and x / y <= math.log(z / y)


def inside_dual_exponential(u, v, w):
    return u < 0.0 < w and v / u <= math.log(w / -u) + 1.0


def inside_power(x, y, z):
    return min(x, y) >= 0.0 and x**0.3 * y**0.7 >= abs(z)


def inside_dual_power(x, y, z):
    return min(x, y) >= 0.0 and (x / 0.3) ** 0.3 * (y / 0.7) ** 0.7 >= abs(z)


NARROW_BOX = {"bl": [-1.0, 0.0, -np.inf], "bu": [1.0, np.inf, 0.5]}


def inside_box(t, *s):
    # t = 0, where an infinite bound gives NaN, does not occur.
    bounds = zip(NARROW_BOX["bl"], s, NARROW_BOX["bu"], strict=True)
    return t > 0.0 and all(t * low <= entry <= t * high for low, entry, high in bounds)


@pytest.mark.parametrize(
    ("cones", "inside"),
    [
        ({"ep": 1}, inside_exponential),
        ({"ed": 1}, inside_dual_exponential),
        ({"p": [0.3]}, inside_power),
        ({"p": [-0.3]}, inside_dual_power),
        (NARROW_BOX, inside_box),
    ],
    ids=["ep", "ed", "p", "dual p", "box"],
)
def test_points_of_the_cone_are_those_of_its_definition(cones, inside):
    points = np.random.default_rng(2).standard_normal((1000, cone_rows(cones)))
    members = [inside(*v) for v in points]
    assert members == [np.array_equal(project_cone(cones, v), v) for v in points]
    assert 20 < sum(members) < 400


def test_box_projections_of_known_points():
    box = {"bl": [-1.0, -np.inf], "bu": [2.0, np.inf]}
    np.testing.assert_allclose(project_cone(box, [1.0, 5.0, 7.0]), [2.2, 4.4, 7.0], rtol=1e-15)
    np.testing.assert_allclose(project_cone(box, [1.0, -3.0, 7.0]), [2.0, -2.0, 7.0], rtol=1e-15)
    # At t = 0 an infinite bound is none, and a finite one is zero.
    np.testing.assert_array_equal(project_cone(box, [-9.0, 1.0, 7.0]), [0.0, 0.0, 7.0])
    np.testing.assert_array_equal(project_dual_cone(box, [9.0, 1.0, 7.0]), [9.0, 1.0, 0.0])
    # y'(t, s) >= 0 for all of the box: y_t >= 2 max(-y_s, 0) + 1 max(y_s, 0).
    np.testing.assert_allclose(project_dual_cone(box, [0.0, 1.0, 7.0]), [0.5, 0.5, 0.0], rtol=1e-15)
    huge = {"bl": [-1.0, -1e15], "bu": [2.0, 1e20]}
    np.testing.assert_array_equal(project_cone(huge, [-9.0, 1.0, 7.0]), [0.0, 0.0, 7.0])


def test_projections_of_known_points():
    np.testing.assert_allclose(project_cone({"q": [3]}, [0.0, 3.0, 4.0]), [2.5, 1.5, 2.0])
    np.testing.assert_allclose(project_cone({"q": [3]}, [-6.0, 3.0, 4.0]), 0.0)
    np.testing.assert_allclose(project_cone({"q": 1}, [-2.0]), [0.0])
    np.testing.assert_allclose(project_dual_cone({"z": 1, "l": 1}, [-2.0, -2.0]), [-2.0, 0.0])
    # [[0, 1], [1, 0]] has the positive part [[1, 1], [1, 1]] / 2.
    root = math.sqrt(2.0)
    np.testing.assert_allclose(project_cone({"s": [2]}, [0.0, root, 0.0]), [0.5, root / 2, 0.5])


def test_semidefinite_rows_are_columns_of_the_lower_triangle():
    factor = np.random.default_rng(0).standard_normal((4, 2))
    matrix = factor @ factor.T
    rows = [matrix[i, j] * (1 if i == j else math.sqrt(2)) for j in range(4) for i in range(j, 4)]
    np.testing.assert_allclose(project_cone({"s": [4]}, rows), rows, atol=1e-12)


@pytest.mark.parametrize(
    ("cones", "message"),
    [
        ({"cs": [2]}, "'cs' is not supported; supported keys are z, l, bl, bu, q, s, ep, ed, p"),
        ({"psd": [2]}, "'psd' is not supported"),
        ({"l": -1}, r"cones\['l'\]: expected at least 0, got -1"),
        ({"l": 1.5}, r"cones\['l'\]: expected an integer, got 1.5"),
        ({"q": [3, 0]}, r"cones\['q'\]: expected at least 1, got 0"),
        ({"ep": -1}, r"cones\['ep'\]: expected at least 0, got -1"),
        ({"p": [0.5, 1.0]}, r"cones\['p'\]: expected numbers in \(-1, 0\) or \(0, 1\), got 1.0"),
        ({"p": [0.0]}, r"cones\['p'\]: expected numbers in"),
        ({"p": [np.nan]}, r"cones\['p'\]: expected numbers in"),
        ({"bl": [0.0]}, r"cones\['bl'\]: expected 0 bounds as in 'bu', got 1"),
        ({"bl": [2.0], "bu": [1.0]}, r"cones\['bl'\]: expected bounds that allow a number"),
        ({"bl": [1e15], "bu": [np.inf]}, r"cones\['bl'\]: expected bounds that allow a number"),
        ({"bl": [np.nan], "bu": [1.0]}, r"cones\['bl'\]: expected numbers"),
        ({"bl": [0.0], "bu": "many"}, r"cones\['bu'\]: expected numbers, got 'many'"),
    ],
)
def test_bad_cones_are_named(cones, message):
    with pytest.raises(ValueError, match=message):
        cone_rows(cones)


def test_empty_entries_mean_none():
    cones = {"z": 0, "l": np.int64(2), "q": [], "s": None, "ep": 0, "p": [], "bu": np.zeros(0)}
    assert cone_rows(cones) == 2


def test_rows_are_counted_as_scs_counts_them():
    assert cone_rows({"bl": [0.0, 1.0], "bu": [1.0, 1.0]}) == 3
    assert cone_rows({"p": 0.5, "ep": 1, "ed": np.int64(2)}) == 12
    assert cone_rows(EVERYTHING) == 20 + 6 + 18


def test_cones_follow_each_other_in_the_order_of_scs():
    v = np.random.default_rng(3).standard_normal(cone_rows(EVERYTHING))
    singles = [{"z": 2}, {"l": 4}, BOX, {"q": [1]}, {"q": [2]}, {"q": [4]}, {"s": [1]}, {"s": [3]}]
    singles += [{"ep": 1}, {"ep": 1}, {"ed": 1}, {"p": [0.3]}, {"p": [-0.8]}, {"p": [0.5]}]
    ends = np.cumsum([cone_rows(one) for one in singles])
    for project in (project_cone, project_dual_cone):
        parts = [project(one, u) for one, u in zip(singles, np.split(v, ends[:-1]), strict=True)]
        np.testing.assert_array_equal(project(EVERYTHING, v), np.concatenate(parts))


# --- the verifier -------------------------------------------------------------------------------


@BOUNDED
@given(strategies.instances(max_n=30, max_m=40, kinds=ALL_KINDS))
def test_known_answers_are_accepted(instance):
    instance.check(instance.x, instance.y, instance.s, tolerance=1e-10)


@BOUNDED
@given(
    strategies.instances(max_n=12, max_m=20, expect="solved", kinds=ALL_KINDS),
    st.sampled_from("xys"),
    st.integers(0, 99),
)
def test_one_moved_entry_is_rejected(instance, name, position):
    answer = {"x": instance.x, "y": instance.y, "s": instance.s}
    moved = answer[name].copy()
    moved[position % moved.size] += 1e-3
    # An x outside the reach of A and P may move: the answer is then another optimal one.
    if name == "x":
        moved_reach = np.vstack([instance.A, instance.P])[:, position % moved.size]
        assume(np.max(np.abs(moved_reach)) > 0.1)
    if name == "y":
        assume(np.max(np.abs(instance.A[position % moved.size])) > 0.1)
    with pytest.raises(AssertionError, match="not solved"):
        instance.check(**{**answer, name: moved}, tolerance=1e-6)


@pytest.mark.parametrize("name", ["x", "y", "s"])
def test_a_negated_part_is_rejected(name):
    instance = solved_instance()
    answer = {"x": instance.x, "y": instance.y, "s": instance.s}
    answer[name] = -answer[name]
    assert verify_solution(*instance.data, **answer).worst > 1e-2


def test_each_measure_sees_its_own_fault():
    instance = solved_instance()
    P, q, A, b, cones = instance.data
    x, y, s = instance.x, instance.y, instance.s
    assert verify_solution(P, q, A, b + 1.0, cones, x, y, s).primal_residual > 1e-2
    assert verify_solution(P, q + 1.0, A, b, cones, x, y, s).dual_residual > 1e-2

    outside = s - 1.0
    verdict = verify_solution(P, q, A, A @ x + outside, cones, x, y, outside)
    assert verdict.primal_residual < 1e-12 < 1e-2 < verdict.primal_cone_distance
    negative = y - 10.0
    verdict = verify_solution(P, -(P @ x + A.T @ negative), A, b, cones, x, negative, s)
    assert verdict.dual_residual < 1e-12 < 1e-2 < verdict.dual_cone_distance

    # Feasible on both sides and yet not optimal.
    inside = s + project_cone(cones, np.ones(s.size))
    verdict = verify_solution(P, q, A, A @ x + inside, cones, x, y, inside)
    assert max(verdict.primal_residual, verdict.primal_cone_distance) < 1e-12
    assert min(verdict.gap, verdict.complementarity) > 1e-3
    assert verdict.complementarity == pytest.approx(verdict.gap)


def test_formulas_on_a_problem_solved_by_hand():
    # minimize 2 x^2 - 6 x subject to x <= 1: x = 1, y = 2, s = 0, objective -4.
    P, q, A, b = [[4.0]], [-6.0], [[1.0]], [1.0]
    assert verify_solution(P, q, A, b, {"l": 1}, [1], [2], [0]).worst == 0.0
    verdict = assert_solved(P, q, A, b, {"l": 1}, [1.5], [1.0], [-0.25], tolerance=1.0)
    assert verdict.primal_residual == pytest.approx(0.25 / 2.5)
    assert verdict.dual_residual == pytest.approx(1.0 / 7.0)
    assert verdict.gap == pytest.approx(1.0 / 10.0)
    assert verdict.primal_cone_distance == pytest.approx(0.25 / 1.25)
    assert verdict.dual_cone_distance == 0.0
    assert verdict.complementarity == pytest.approx(0.25 / 10.0)
    assert verdict.objective == pytest.approx(-4.5)
    assert verdict.worst == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["x", "y", "s"])
def test_answers_that_are_not_finite_are_infinitely_wrong(name, bad):
    instance = solved_instance()
    answer = {"x": instance.x, "y": instance.y, "s": instance.s}
    answer[name] = np.full_like(answer[name], bad)
    assert verify_solution(*instance.data, **answer).worst == math.inf


def test_sparse_data_and_no_quadratic():
    instance = solved_instance(quadratic_rank=0)
    P, q, A, b, cones = instance.data
    answer = instance.x, instance.y, instance.s
    dense = verify_solution(P, q, A, b, cones, *answer)
    assert verify_solution(None, q, A, b, cones, *answer) == dense
    for kind in (sparse.csc_matrix, sparse.coo_array):
        assert verify_solution(kind(P), q, kind(A), b, cones, *answer).worst < 1e-12


def test_bad_arguments_are_named():
    instance = solved_instance()
    P, q, A, b, cones = instance.data
    x, y, s = instance.x, instance.y, instance.s
    with pytest.raises(ValueError, match=r"x: expected shape \(6,\), got \(5,\)"):
        verify_solution(P, q, A, b, cones, x[:5], y, s)
    with pytest.raises(ValueError, match="A: expected 20 rows"):
        verify_solution(P, q, A[:-1], b[:-1], cones, x, y, s)
    with pytest.raises(ValueError, match="P: expected a symmetric matrix"):
        verify_solution(np.triu(P), q, A, b, cones, x, y, s)
    with pytest.raises(ValueError, match="P: expected a symmetric matrix"):
        verify_solution(sparse.triu(P), q, A, b, cones, x, y, s)


def test_messages_tell_what_is_wrong():
    instance = solved_instance()
    with pytest.raises(AssertionError, match=r"not solved to 1.0e-06: primal residual .*gap"):
        instance.check(instance.x, -instance.y, instance.s)
    with pytest.raises(AssertionError, match="expected an answer 'solved' with y, got none"):
        instance.check(instance.x, s=instance.s)


# --- certificates -------------------------------------------------------------------------------


@BOUNDED
@given(
    strategies.instances(max_n=12, max_m=20, expect="infeasible", kinds=ALL_KINDS),
    st.floats(1e-6, 1e6),
)
def test_certificates_of_infeasibility(instance, scale):
    A, b, cones, y = instance.A, instance.b, instance.cones, instance.y
    assert verify_infeasible(A, b, cones, scale * y) < 1e-10
    assert verify_infeasible(A, b, cones, -y) == math.inf
    assert verify_infeasible(A, b, cones, np.full_like(y, np.nan)) == math.inf
    # Moved against K* the scaled certificate leaves it; moved along A it is not orthogonal.
    outside = y - project_cone(cones, np.ones(y.size))
    if np.max(np.abs(project_dual_cone(cones, outside) - outside)) > 1e-2:
        assert verify_infeasible(A, b, cones, outside) > 1e-4
    slope = A @ np.ones(A.shape[1])
    if np.max(np.abs(A.T @ slope)) > 1e-2:
        assert verify_infeasible(A, b, cones, y + 0.1 * slope) > 1e-4


@BOUNDED
@given(
    strategies.instances(max_n=12, max_m=20, expect="unbounded", kinds=ALL_KINDS),
    st.floats(1e-6, 1e6),
)
def test_certificates_of_unboundedness(instance, scale):
    P, q, A, _, cones = instance.data
    x, s = instance.x, instance.s
    assert verify_unbounded(P, q, A, cones, scale * x, scale * s) < 1e-10
    assert verify_unbounded(P, q, A, cones, scale * x) < 1e-10
    assert verify_unbounded(P, q, A, cones, -x) == math.inf
    assert verify_unbounded(P, q, A, cones, x, np.full_like(s, np.nan)) == math.inf
    # A slack at another scale than its direction.
    assert verify_unbounded(P, q, A, cones, x, s + 0.01) > 1e-4
    bent = P + 0.1 * np.eye(x.size)
    assert verify_unbounded(bent, q, A, cones, x, s) > 1e-4


@BOUNDED
@given(strategies.instances(max_n=15, max_m=20, expect="infeasible"), st.integers(0, 9))
def test_no_direction_is_a_certificate_when_infeasible(instance, seed):
    x = np.random.default_rng(seed).standard_normal(instance.q.size)
    x = x if instance.q @ x < 0 else -x
    assert verify_unbounded(instance.P, instance.q, instance.A, instance.cones, x) > 1e-4


def test_certificate_assertions_say_the_scale():
    rng = np.random.default_rng(0)
    lost = manufacture.infeasible(rng, 4, MIXED)
    with pytest.raises(AssertionError, match=r"certificate of infeasibility.*b'y = 1"):
        assert_infeasible(lost.A, lost.b, MIXED, -lost.y)
    free = manufacture.unbounded(rng, 4, MIXED)
    with pytest.raises(AssertionError, match=r"certificate of unboundedness.*q'x = 1"):
        assert_unbounded(free.P, free.q, free.A, MIXED, -free.x)
    assert assert_infeasible(lost.A, lost.b, MIXED, lost.y) < 1e-12
    assert assert_unbounded(free.P, free.q, free.A, MIXED, free.x, free.s) < 1e-12


# --- manufacture and strategies -----------------------------------------------------------------


def test_ranks_and_densities_are_as_asked():
    rng = np.random.default_rng(0)
    for rank in (0, 3, 8):
        instance = manufacture.feasible(rng, 8, {"l": 40}, quadratic_rank=rank, density=0.2)
        assert np.linalg.matrix_rank(instance.P) == rank
        assert 0.15 < np.mean(instance.A != 0) < 0.45
        assert np.all(np.any(instance.A != 0, axis=0)) and np.all(np.any(instance.A != 0, axis=1))
    assert np.linalg.matrix_rank(manufacture.unbounded(rng, 8, {"l": 5}).P) == 7


def test_same_seed_same_instance():
    first, second = solved_instance(seed=3), solved_instance(seed=3)
    for one, other in zip(first.data[:4], second.data[:4], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", [key for key in EVERYTHING if key not in ("z", "bl")])
@pytest.mark.parametrize("make", [manufacture.infeasible, manufacture.unbounded])
def test_certificates_of_every_cone_alone(make, kind):
    """No kind leaves a certificate to its neighbours: each has one of its own."""
    cones = BOX if kind == "bu" else {kind: EVERYTHING[kind]}
    for seed in range(5):
        instance = make(np.random.default_rng(seed), 6, cones)
        instance.check(instance.x, instance.y, instance.s, tolerance=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_unique_solutions_with_every_cone_are_regular(seed):
    instance = solved_instance(seed, 15, EVERYTHING, unique=True)
    instance.check(instance.x, instance.y, instance.s, tolerance=1e-12)


@pytest.mark.parametrize("n", [2, 6, 15])
def test_unique_solutions_are_regular(n):
    cones = {"z": 2, "l": 10, "q": [1, 2, 3, 5]}
    for seed in range(5):
        instance = solved_instance(seed, n, cones, unique=True)
        instance.check(instance.x, instance.y, instance.s, tolerance=1e-12)
        assert np.linalg.eigvalsh(instance.P)[0] > 0.1
        z = np.abs(instance.y - instance.s)
        assert np.min(z[2:12]) > 0.0


def test_impossible_requests_raise():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one row"):
        manufacture.infeasible(rng, 3, {})
    with pytest.raises(ValueError, match="n: expected at least 1"):
        manufacture.feasible(rng, 0, {"l": 1})
    with pytest.raises(ValueError, match="density"):
        manufacture.feasible(rng, 2, {"l": 1}, density=0.0)
    with pytest.raises(ValueError, match="quadratic_rank: expected 0 to 2, got 3"):
        manufacture.unbounded(rng, 3, {"l": 1}, quadratic_rank=3)
    with pytest.raises(ValueError, match="unique: found no regular solution"):
        manufacture.feasible(rng, 2, {"z": 3}, unique=True)
    with pytest.raises(ValueError, match="unique=True needs 2"):
        manufacture.feasible(rng, 2, {"z": 1}, unique=True, quadratic_rank=1)


def test_strategies_refuse_unknown_kinds():
    @given(strategies.cones(kinds=("z", "cs")))
    def draw(cones):
        raise RuntimeError("nothing should be drawn")

    with pytest.raises(ValueError, match="kinds: expected some of z, l, box, q, s, ep, ed, p"):
        draw()


def test_strategies_need_room_for_one_cone():
    @given(strategies.cones(max_rows=2, kinds=("p", "ep")))
    def draw(cones):
        raise RuntimeError("nothing should be drawn")

    with pytest.raises(ValueError, match="max_rows: expected at least 3 for 'p', got 2"):
        draw()


def test_strategies_reach_every_kind():
    seen = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(strategies.cones(max_rows=40, kinds=ALL_KINDS))
    def collect(cones):
        assert 1 <= cone_rows(cones) <= 40
        seen.append(cones)

    collect()
    assert {key for cones in seen for key in cones} == set(EVERYTHING)
    assert {np.sign(a) for cones in seen for a in cones.get("p", [])} == {-1.0, 1.0}
    pairs = {
        pair for one in seen for pair in zip(one.get("bl", []), one.get("bu", []), strict=True)
    }
    assert {(-1e20, 1e20), (1.0, 1.0), (-1.0, 1.0)} <= pairs


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_strategies_draw_each_kind_alone(kind):
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(strategies.cones(max_rows=3, kinds=(kind,)))
    def check(cones):
        assert set(cones) == ({"bl", "bu"} if kind == "box" else {kind})
        assert 1 <= cone_rows(cones) <= 3

    check()


def test_no_rows_at_all():
    instance = manufacture.feasible(np.random.default_rng(0), 3, {})
    instance.check(instance.x, instance.y, instance.s, tolerance=1e-12)


def test_strategies_reach_all_outcomes_and_cone_sizes():
    outcomes, sizes, rows = set(), set(), []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(strategies.instances(max_n=5, max_m=25))
    def collect(instance):
        outcomes.add(instance.expect)
        sizes.update(instance.cones.get("q", []))
        rows.append(cone_rows(instance.cones))

    collect()
    assert outcomes == {"solved", "infeasible", "unbounded"}
    assert {1, 2} <= sizes and max(sizes) > 4
    assert min(rows) >= 1 and max(rows) <= 25


def test_recipe_makes_the_instance_again():
    made = []

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(strategies.instances(max_n=5, max_m=20, kinds=ALL_KINDS))
    def collect(instance):
        made.append(instance)

    collect()
    for instance in made:
        again = eval(instance.recipe, {"manufacture": manufacture, "np": np})
        np.testing.assert_array_equal(again.b, instance.b)
        assert instance.recipe in repr(instance)


# --- degenerate problems, other units, claims ----------------------------------------------------


def test_a_value_that_is_rounding_certifies_nothing():
    # Exact on every machine, with and without fused multiply-adds: b'y = 2 of terms of 2^53.
    A, b = np.zeros((2, 1)), np.array([1.0, 2.0**-52 - 1.0])
    y = 2.0**53 * np.ones(2)
    assert b @ y == 2.0 and verify_infeasible(A, -b, {"l": 2}, y) == math.inf
    flat = np.zeros((0, 2))
    assert verify_unbounded(None, -b, flat, {}, y) == math.inf
    assert verify_unbounded(None, -b - [0.1, 0], flat, {}, y) == 0.0


def test_structures_are_as_asked():
    rng = np.random.default_rng(0)
    cones = {"z": 3, "l": 10, "q": [4]}
    for rank in (0, 1, 4):
        A = manufacture.feasible(rng, 8, cones, structure=Structure(rank=rank)).A
        assert np.linalg.matrix_rank(A) == rank
    A = manufacture.feasible(rng, 8, cones, structure=Structure(zero_rows=2, zero_columns=3)).A
    assert np.sum(~A.any(axis=1)) == 2 and np.sum(~A.any(axis=0)) == 3
    A = manufacture.feasible(rng, 8, cones, structure=Structure(repeated_rows=1)).A
    assert np.linalg.matrix_rank(A[:, :8]) == 8
    cosines = A @ A.T / np.outer(*[np.linalg.norm(A, axis=1)] * 2)
    assert np.sum(np.abs(cosines) > 1 - 1e-12) == 17 + 2


@pytest.mark.parametrize("make", [manufacture.infeasible, manufacture.unbounded])
def test_structures_keep_certificates(make):
    structure = Structure(rank=3, repeated_rows=2, zero_rows=2, zero_columns=2)
    for seed in range(10):
        instance = make(np.random.default_rng(seed), 6, EVERYTHING, structure=structure)
        instance.check(instance.x, instance.y, instance.s, tolerance=1e-11)


@pytest.mark.parametrize(
    "cones", [{"l": 6}, {"q": [4]}, {"s": [3]}, {"ep": 2}, EVERYTHING], ids=str
)
def test_thin_problems_have_no_interior(cones):
    thin = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        instance = manufacture.feasible(rng, 5, cones, structure=Structure(thin=True))
        instance.check(instance.x, instance.y, instance.s, tolerance=1e-12)
        A, z = rng.standard_normal((cone_rows(cones), 5)), rng.standard_normal(cone_rows(cones))
        flat, z = flatten(rng, cones, A, z)
        if np.array_equal(flat, A):
            continue
        # What was taken from A has rank one and names the point w of K*, up to its sign.
        w = np.linalg.svd(A - flat)[0][:, 0]
        w = min(w, -w, key=lambda v: np.linalg.norm(v - project_dual_cone(cones, v)))
        assert np.linalg.norm(w - project_dual_cone(cones, w)) < 1e-12
        s = project_dual_cone(cones, z) - z
        assert np.linalg.norm(flat.T @ w) < 1e-12 and abs(s @ w) < 1e-12
        assert np.linalg.norm(w[cones.get("z", 0) :]) > 0.99
        thin += 1
    assert thin >= 3


@BOUNDED
@given(
    strategies.instances(max_n=8, max_m=16, kinds=ALL_KINDS),
    st.integers(0, 9),
    st.sampled_from((1.0, 3.0)),
)
def test_other_units_keep_the_answer(instance, seed, decades):
    rng = np.random.default_rng(seed)
    units = dict.fromkeys(("rows", "columns", "right", "cost"), decades)
    other = scaling.rescale_at_random(rng, instance, **units)
    assert 1.0 < other.spread <= 10.0 ** (2 * decades + 1)
    if instance.expect == "infeasible":
        assert other.b @ other.y == pytest.approx(-1.0)
    elif instance.expect == "unbounded":
        assert other.q @ other.x == pytest.approx(-1.0)
    # A violation is absolute, and so grows with the units.
    tolerance = 1e-11 if instance.expect == "solved" else 1e-12 * other.spread**2
    other.check(other.x, other.y, other.s, tolerance=tolerance)


def test_units_are_those_of_the_formulas():
    instance = solved_instance(cones={"l": 1, "q": [3]}, n=2)
    E, D = np.array([2.0, 4.0, 4.0, 4.0]), np.array([0.5, 8.0])
    other = scaling.rescale(instance, E, D, right=16.0, cost=0.25)
    np.testing.assert_array_equal(other.A, np.diag(E) @ instance.A @ np.diag(D))
    np.testing.assert_array_equal(other.b, 16.0 * E * instance.b)
    np.testing.assert_array_equal(other.q, 0.25 * D * instance.q)
    np.testing.assert_array_equal(other.P, np.diag(D) @ instance.P @ np.diag(D) / 64.0)
    np.testing.assert_array_equal(other.x, 16.0 * instance.x / D)
    assert other.spread == 64.0 and instance.spread == 1.0


def test_units_that_break_a_cone_are_refused():
    instance = solved_instance(cones={"l": 2, "q": [2]}, n=2)
    with pytest.raises(ValueError, match="rows: expected one factor for rows 2 to 3"):
        scaling.rescale(instance, [1.0, 2.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="expected positive numbers"):
        scaling.rescale(instance, right=0.0)
    with pytest.raises(ValueError, match=r"columns: expected shape \(2,\)"):
        scaling.rescale(instance, columns=[1.0])


def test_claims_that_contradict_are_faults():
    rng = np.random.default_rng(0)
    made = {
        "solved": manufacture.feasible(rng, 4, MIXED),
        "infeasible": manufacture.infeasible(rng, 4, MIXED),
        "unbounded": manufacture.unbounded(rng, 4, MIXED),
    }
    for claim, instance in made.items():
        answer = instance.x, instance.y, instance.s
        assert claims.is_decided(instance)
        assert claims.find_fault(instance, claim, *answer) == ""
        for other in set(made) - {claim}:
            assert claims.find_fault(instance, other, *answer).startswith(f"claims {other}, off by")


def test_a_huge_answer_does_not_hide_infeasibility():
    # x1 <= 0 and x1 >= 1; a large x2 >= 0 makes every residual relatively small.
    A = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    lost = Instance(
        np.zeros((2, 2)),
        np.zeros(2),
        A,
        np.array([0.0, -1.0, 0.0]),
        {"l": 3},
        "infeasible",
        x=np.full(2, np.nan),
        y=np.array([1.0, 1.0, 0.0]),
        s=np.full(3, np.nan),
    )
    x, s = np.array([0.5, 1e10]), np.array([0.0, 0.0, 1e10])
    assert claims.measure(lost, "solved", x, np.zeros(3), s) < 1e-10
    fault = claims.find_fault(lost, "solved", x, np.zeros(3), s)
    assert fault == "claims solved of a problem that is infeasible"


def test_the_rounding_of_large_terms_is_no_fault():
    # A'y = 0 holds but for the last bit of terms of size 1e9, which is 1e-7 beside b'y = -1.
    A, y = np.array([[1e9], [-1e9 - 1e-7]]), np.ones(2)
    nothing, free = np.full(1, np.nan), np.full(2, np.nan)
    lost = Instance(
        np.zeros((1, 1)), np.zeros(1), A, np.array([-1.0, 0.0]), {"l": 2}, "infeasible",
        x=nothing, y=y, s=free,
    )  # fmt: skip
    assert 1e-8 < claims.measure(lost, "infeasible", nothing, y, free) < 2e-7
    assert claims.find_fault(lost, "infeasible", nothing, y, free) == ""
    worse = replace(lost, A=np.array([[1e9], [-1e9 - 1e-5]]))
    assert "off by 1.0e-05" in claims.find_fault(worse, "infeasible", nothing, y, free)
    small = replace(lost, A=np.array([[1.0], [-1.0 - 1e-7]]))
    assert "off by 1.0e-07" in claims.find_fault(small, "infeasible", nothing, y, free)


def test_problems_of_hidden_kind_are_not_decided():
    lost = manufacture.infeasible(np.random.default_rng(0), 4, MIXED)
    # With so small a right-hand side, zero is feasible to any tolerance.
    hidden = scaling.rescale(lost, right=2.0**-40)
    assert not claims.is_decided(hidden)
    far = scaling.rescale(solved_instance(), right=2.0**40)
    assert not claims.is_decided(far)


def test_condition_tells_regular_solutions():
    regular = solved_instance(cones={"l": 4}, unique=True)
    assert manufacture.with_condition(regular).condition < 1e6
    free = manufacture.feasible(
        np.random.default_rng(0), 3, {"l": 2}, quadratic_rank=0, structure=Structure(zero_columns=1)
    )
    assert manufacture.with_condition(free).condition > 1e12
    lost = manufacture.infeasible(np.random.default_rng(0), 4, MIXED)
    assert manufacture.with_condition(lost).condition == math.inf


def test_batches_share_their_shape_and_can_be_made_again():
    seen, made = set(), []

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(strategies.batches(6, 12, 3, ALL_KINDS))
    def collect(batch):
        assert len({(v.A.shape, repr(v.cones)) for v in batch}) == 1
        seen.update(v.expect for v in batch)
        made.append(batch[0])

    collect()
    assert seen == {"solved", "infeasible", "unbounded"}
    assert any(one.spread > 1e3 for one in made)
    names = {"manufacture": manufacture, "scaling": scaling, "np": np, "Structure": Structure}
    for instance in made:
        again = eval(instance.recipe, names)
        for name in "PqAb":
            np.testing.assert_array_equal(getattr(again, name), getattr(instance, name))


# --- solvers ------------------------------------------------------------------------------------


def solve_with_scs(instance: Instance):
    scs = pytest.importorskip("scs")
    data = {
        "P": sparse.csc_matrix(sparse.triu(instance.P)),
        "A": sparse.csc_matrix(instance.A),
        "b": instance.b,
        "c": instance.q,
    }
    accuracy = {"eps_abs": 1e-9, "eps_rel": 1e-9, "eps_infeas": 1e-9, "max_iters": 50_000}
    answer = scs.solve(data, instance.cones, verbose=False, **accuracy)
    return answer["info"]["status"], answer["x"], answer["y"], answer["s"]


def solve_with_clarabel(instance: Instance):
    clarabel = pytest.importorskip("clarabel")
    cones = [clarabel.ZeroConeT(instance.cones.get("z", 0))]
    cones += [clarabel.NonnegativeConeT(instance.cones.get("l", 0))]
    cones += [clarabel.SecondOrderConeT(size) for size in instance.cones.get("q", [])]
    cones += [clarabel.ExponentialConeT()] * instance.cones.get("ep", 0)
    options = clarabel.DefaultSettings()
    options.verbose = False
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_infeas_abs", "tol_infeas_rel"):
        setattr(options, name, 1e-9)
    P = sparse.csc_matrix(sparse.triu(instance.P))
    A = sparse.csc_matrix(instance.A)
    answer = clarabel.DefaultSolver(P, instance.q, A, instance.b, cones, options).solve()
    names = {
        "Solved": "solved",
        "PrimalInfeasible": "infeasible",
        "DualInfeasible": "unbounded",
    }
    status = names.get(str(answer.status), str(answer.status))
    return status, np.array(answer.x), np.array(answer.z), np.array(answer.s)


@pytest.mark.parametrize(
    ("solve", "kinds"),
    [(solve_with_scs, ALL_KINDS), (solve_with_clarabel, ("z", "l", "q", "ep"))],
    ids=["scs", "clarabel"],
)
def test_independent_solvers_agree(solve, kinds):
    undecided = []

    @BOUNDED
    @given(strategies.instances(max_n=12, max_m=24, kinds=kinds))
    def agree(instance):
        status, x, y, s = solve(instance)
        if status not in ("solved", "infeasible", "unbounded"):
            undecided.append(instance)
            return
        assert status == instance.expect
        instance.check(x, y, s, tolerance=1e-5)

    agree()
    # "Almost" and "inaccurate" are honest on problems at the edge, but not as a habit.
    assert len(undecided) <= 3, undecided


@pytest.mark.parametrize("seed", range(4))
def test_scs_agrees_where_every_cone_is_present(seed):
    """The order and the scaling of the rows, and the sign of exponents, are SCS's own."""
    instance = manufacture.feasible(np.random.default_rng(seed), 20, EVERYTHING, unique=True)
    status, x, y, s = solve_with_scs(instance)
    assert status == "solved"
    np.testing.assert_allclose(x, instance.x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(y, instance.y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(s, instance.s, rtol=0, atol=1e-6)


def solve_by_splitting(instance, project, iterations=2000):
    """A splitting method of ten lines whose projection the tests may break."""
    P, q, A, b, _ = instance.data
    x, y, s = np.zeros(q.size), np.zeros(b.size), np.zeros(b.size)
    inverse = np.linalg.inv(P + 1e-6 * np.eye(q.size) + A.T @ A)
    for _ in range(iterations):
        x = inverse @ (1e-6 * x - q + A.T @ (b - s - y))
        v = b - A @ x - y
        s = project(v)
        y = s - v
    return x, y, s


def project_wrongly(v):
    """Clip the second-order cone's tail to its head, and leave the head alone."""
    length = np.linalg.norm(v[1:])
    head = max(v[0], 0.0)
    return np.concatenate(([head], v[1:] * min(1.0, head / max(length, 1e-300))))


def second_order_instances():
    rng = np.random.default_rng(0)
    made = [manufacture.feasible(rng, 5, {"q": [4]}, unique=True) for _ in range(60)]
    # Where the answer is at the apex or inside, the wrong projection may be right.
    return [one for one in made if min(np.linalg.norm(one.y), np.linalg.norm(one.s)) > 0.3][:5]


def test_a_correct_splitting_passes():
    for instance in second_order_instances():
        answer = solve_by_splitting(instance, lambda v: project_cone({"q": [4]}, v))
        instance.check(*answer, tolerance=1e-6)


def test_a_wrong_projection_is_caught():
    made = second_order_instances()
    assert len(made) == 5
    for instance in made:
        x, y, s = solve_by_splitting(instance, project_wrongly)
        verdict = verify_solution(*instance.data, x, y, s)
        # It converges, to a feasible point, and only its multiplier betrays it.
        assert verdict.primal_cone_distance < 1e-6
        assert verdict.worst > 1e-3


def test_a_negated_dual_is_caught():
    for instance in second_order_instances():
        x, y, s = solve_by_splitting(instance, lambda v: project_cone({"q": [4]}, v))
        with pytest.raises(AssertionError, match="not solved"):
            instance.check(x, -y, s)


def test_a_claim_of_optimality_is_caught_where_none_exists():
    lost = manufacture.infeasible(np.random.default_rng(0), 5, {"l": 8})
    claimed = replace(lost, expect="solved")
    answer = solve_by_splitting(claimed, lambda v: project_cone({"l": 8}, v))
    with pytest.raises(AssertionError, match="not solved"):
        claimed.check(*answer, tolerance=1e-3)
