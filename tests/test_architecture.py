"""The layout of the packages, kept true by a walk over the import graph.

A new module needs a row in ``LEVELS``; a module imports only what stands on a lower level.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOLVER = "mlxcone"
LAYER = "cvxpylayers_mlx"
TESTING = "mlxcone.testing"

# Every module of mlxcone but `mlxcone` and `mlxcone.testing` themselves, which have rules of their
# own below. The second number orders modules inside one level, for the few that need an order.
LEVELS: dict[str, tuple[int, int]] = {
    "mlxcone._version": (0, 0),
    "mlxcone.devices": (0, 0),
    "mlxcone._linalg": (0, 1),
    "mlxcone.settings": (0, 0),
    "mlxcone.status": (0, 0),
    "mlxcone.lanes": (0, 0),
    "mlxcone.gather": (0, 0),
    "mlxcone.keyed": (0, 0),
    "mlxcone.repeated": (0, 0),
    "mlxcone.solution": (0, 1),
    "mlxcone.cones.base": (1, 0),
    "mlxcone.cones.linear": (1, 1),
    "mlxcone.cones.second_order": (1, 1),
    "mlxcone.cones.spectral3": (1, 1),
    "mlxcone.cones.barrier": (1, 1),
    "mlxcone.cones.probes": (1, 1),
    "mlxcone.cones.box": (1, 2),
    "mlxcone.cones.sign_iteration": (1, 1),
    "mlxcone.cones.positive_part": (1, 1),
    "mlxcone.cones.semidefinite": (1, 2),
    "mlxcone.cones.exponential": (1, 2),
    "mlxcone.cones.power": (1, 2),
    "mlxcone.cones.power_nd": (1, 2),
    "mlxcone.cones.description": (1, 0),
    "mlxcone.cones.product": (1, 3),
    "mlxcone.cones": (1, 4),
    "mlxcone.pairs": (1, 4),
    "mlxcone.operators": (1, 5),
    "mlxcone.structure": (1, 6),
    "mlxcone.problem": (1, 6),
    "mlxcone.report": (1, 6),
    "mlxcone.sparse": (1, 6),
    "mlxcone.sparse_map": (1, 7),
    "mlxcone.equilibrate": (2, 0),
    "mlxcone.outcomes": (2, 1),
    "mlxcone.anderson": (2, 0),
    "mlxcone.residual_map": (2, 0),
    "mlxcone.residuals": (2, 1),
    "mlxcone.low_rank": (2, 0),
    "mlxcone.separable": (2, 0),
    "mlxcone.kkt": (2, 1),
    "mlxcone.conjugate": (2, 2),
    "mlxcone.splitting_factor": (2, 3),
    "mlxcone.admm": (3, 0),
    "mlxcone.multipliers": (3, 0),
    "mlxcone.scaled_system": (3, 0),
    "mlxcone.interior": (3, 1),
    "mlxcone.derivative": (3, 0),
    "mlxcone.centring": (3, 2),
    "mlxcone.smoothing": (3, 3),
    "mlxcone.certificates": (3, 1),
    "mlxcone.refine": (3, 2),
    "mlxcone.loop": (4, 0),
    "mlxcone.ladder": (4, 1),
    "mlxcone.unrolled": (4, 2),
    "mlxcone.large": (5, 0),
    "mlxcone.differentiable": (5, 0),
    "mlxcone.solver": (6, 0),
    "mlxcone.cvxpy_interface": (7, 0),
    "mlxcone.distributed": (7, 0),
    "mlxcone.nn.checks": (7, 0),
    "mlxcone.nn.projections": (7, 1),
    "mlxcone.nn.choice": (7, 2),
    "mlxcone.nn.control": (7, 1),
    "mlxcone.nn.quadratic": (7, 1),
    "mlxcone.nn": (7, 3),
    "mlxcone.plots": (7, 0),
    "mlxcone.__main__": (7, 0),
}

# Only these know CVXPY; elsewhere it may be named for types.
CVXPY_IMPORTERS = {
    "mlxcone.cvxpy_interface",
    "cvxpylayers_mlx.canonicalize",
    "cvxpylayers_mlx.foreign",
}
# Solvers of others belong to tests and benchmarks.
FORBIDDEN_IMPORTS = (
    "clarabel",
    "diffcp",
    "osqp",
    "scs",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.sparse.linalg",
    "cvxpylayers",
)
LINALG_CALLER = "mlxcone._linalg"
PRINTER = "mlxcone.report"
SELF_CHECK = "mlxcone.__main__"  # the only one to judge answers, by mlxcone.testing
MAX_LINES = 450


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name`` or ``import module`` (name is None)."""

    module: str
    name: str | None
    line: int
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    package: str  # what its relative imports start from
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def read_modules(package: str) -> dict[str, Module]:
    """Parses every file of a package, by dotted name."""
    modules = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_init = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_init else parts)
        parent = ".".join(parts[:-1])
        modules[name] = Module(name, parent, path.read_text(encoding="utf-8"))
    return modules


SOLVER_MODULES = read_modules(SOLVER)
LAYER_MODULES = read_modules(LAYER)
MODULES = SOLVER_MODULES | LAYER_MODULES


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def typing_only_nodes(tree: ast.Module) -> set[int]:
    """Ids of the nodes under ``if TYPE_CHECKING:``."""
    nodes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    return nodes


def imports_of(module: Module) -> Iterator[Import]:
    """Yields every import of a module, those inside functions included, relative ones resolved."""
    tree = module.tree
    typing_only = typing_only_nodes(tree)
    for node in ast.walk(tree):
        quiet = id(node) in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, quiet)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.package.split(".")
                start = ".".join(parents[: len(parents) - node.level + 1])
                base = f"{start}.{base}" if base else start
            for alias in node.names:
                yield Import(base, alias.name, node.lineno, quiet)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            target = node.args[0] if node.args else None
            if isinstance(target, ast.Constant):
                yield Import(str(target.value), None, node.lineno, quiet)


def target_of(imported: Import, known: dict[str, tuple[int, int]]) -> str:
    """The module that an import reaches: ``from package import module`` reaches the module."""
    inner = f"{imported.module}.{imported.name}"
    return inner if inner in known else imported.module


def level_faults(module: Module, levels: dict[str, tuple[int, int]]) -> list[str]:
    """Imports of mlxcone's own modules that do not go down."""
    faults = []
    for imported in imports_of(module):
        target = target_of(imported, levels)
        judges = module.name == SELF_CHECK and is_in(imported.module, TESTING)
        if not is_in(target, SOLVER) or judges:
            continue
        where = f"{module.name}:{imported.line}"
        if target not in levels:
            name = f"{imported.module}.{imported.name}" if imported.name else imported.module
            faults.append(f"{where} imports {name}, which has no level")
        elif levels[target] >= levels[module.name]:
            faults.append(
                f"{where} (level {levels[module.name]}) imports {target} (level {levels[target]})"
            )
    return faults


def import_faults(module: Module) -> list[str]:
    """Imports that the module may not make, whatever its level."""
    faults = []
    for imported in imports_of(module):
        full = imported.module + (f".{imported.name}" if imported.name else "")
        where = f"{module.name}:{imported.line} imports {full}"
        if any(is_in(full, name) for name in FORBIDDEN_IMPORTS):
            faults.append(where)
        allowed = module.name in CVXPY_IMPORTERS or imported.typing_only
        if is_in(full, "cvxpy") and not allowed:
            faults.append(where)
        if is_in(module.name, TESTING) and (
            is_in(full, "mlx")
            or is_in(full, LAYER)
            or (is_in(full, SOLVER) and not is_in(full, TESTING))
        ):
            faults.append(where)
        if full.startswith("mlx.core.linalg") and module.name != LINALG_CALLER:
            faults.append(where)
    return faults


def name_faults(module: Module) -> list[str]:
    """Uses of names that belong to one module."""
    faults = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr == "linalg":
            owner = ast.unparse(node.value)
            from_mlx = owner in {"mx", "mlx.core", "core"} and module.name != LINALG_CALLER
            # The verifier is plain NumPy; everything else computes with MLX.
            from_numpy = owner in {"np", "numpy"} and not is_in(module.name, TESTING)
            if from_mlx or from_numpy:
                faults.append(f"{module.name}:{node.lineno} uses {owner}.linalg")
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and module.name != PRINTER
        ):
            faults.append(f"{module.name}:{node.lineno} prints")
    return faults


def public_faults(module: Module, public: set[str]) -> list[str]:
    """Names of mlxcone that a layer module uses though they are not public."""
    faults = []
    aliases = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {a.asname or a.name for a in node.names if a.name == SOLVER}
    for imported in imports_of(module):
        where = f"{module.name}:{imported.line}"
        if imported.module.startswith(SOLVER + "."):
            faults.append(f"{where} imports from {imported.module}")
        elif imported.module == SOLVER and imported.name and imported.name not in public:
            faults.append(f"{where} imports {imported.name}")
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases
            and node.attr not in public
        ):
            faults.append(f"{module.name}:{node.lineno} uses {SOLVER}.{node.attr}")
    return faults


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_imports_nothing_forbidden(name: str) -> None:
    assert import_faults(MODULES[name]) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_leaves_special_names_to_their_owner(name: str) -> None:
    assert name_faults(MODULES[name]) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_can_be_read_in_one_sitting(name: str) -> None:
    assert len(MODULES[name].source.splitlines()) <= MAX_LINES
    assert name.rpartition(".")[2] != "utils", "name a module after what it holds"


def test_levels_list_exactly_the_modules_there_are() -> None:
    there = {name for name in SOLVER_MODULES if name != SOLVER and not is_in(name, TESTING)}
    assert there - set(LEVELS) == set(), "give each new module a level"
    assert set(LEVELS) - there == set(), "these modules are gone"


@pytest.mark.parametrize("name", sorted(set(LEVELS) & set(SOLVER_MODULES)))
def test_imports_go_down(name: str) -> None:
    assert level_faults(SOLVER_MODULES[name], LEVELS) == []


@pytest.mark.parametrize("name", sorted(LAYER_MODULES))
def test_layer_uses_public_names_only(name: str) -> None:
    import mlxcone

    assert public_faults(LAYER_MODULES[name], set(mlxcone.__all__)) == []


# The checks themselves: each must see the fault it is there for.


@pytest.mark.parametrize(
    "source",
    [
        "import mlxcone.ladder",
        "from mlxcone import ladder",
        "from mlxcone.ladder import run",
        "from .. import ladder",
        "from ..ladder import run",
        "def f():\n    from .product import Product",
        "import mlxcone",
        "import importlib\nimportlib.import_module('mlxcone.ladder')",
    ],
)
def test_upward_import_is_seen(source: str) -> None:
    module = Module("mlxcone.cones.soc", "mlxcone.cones", source)
    levels = {
        "mlxcone.cones.soc": (1, 1),
        "mlxcone.cones.product": (1, 2),
        "mlxcone.ladder": (4, 0),
    }
    assert len(level_faults(module, levels)) == 1


def test_downward_import_is_allowed() -> None:
    source = "import mlx.core as mx\nfrom mlxcone import _linalg\nfrom .base import Cone\n"
    module = Module("mlxcone.cones.soc", "mlxcone.cones", source)
    levels = {
        "mlxcone._linalg": (0, 0),
        "mlxcone.cones.base": (1, 0),
        "mlxcone.cones.soc": (1, 1),
    }
    assert level_faults(module, levels) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mlxcone.kkt", "import scipy.sparse.linalg"),
        ("mlxcone.kkt", "from scipy.sparse import linalg"),
        ("mlxcone.kkt", "from scipy import optimize"),
        ("mlxcone.kkt", "import scs"),
        ("mlxcone.kkt", "from mlx.core.linalg import inv"),
        ("cvxpylayers_mlx.layer", "import cvxpy as cp"),
        ("mlxcone.testing.verify", "import mlx.core as mx"),
        ("mlxcone.testing.verify", "from mlxcone import solve"),
    ],
)
def test_forbidden_import_is_seen(name: str, source: str) -> None:
    assert len(import_faults(Module(name, name.rpartition(".")[0], source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mlxcone.kkt", "import scipy.sparse as sp"),
        ("cvxpylayers_mlx.canonicalize", "import cvxpy as cp"),
        (
            "cvxpylayers_mlx.layer",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cvxpy as cp",
        ),
        ("mlxcone.testing.verify", "from .problems import draw\nfrom mlxcone.testing import cones"),
    ],
)
def test_allowed_import_is_allowed(name: str, source: str) -> None:
    assert import_faults(Module(name, name.rpartition(".")[0], source)) == []


def test_special_names_are_seen() -> None:
    source = "mx.linalg.inv(a)\nnp.linalg.inv(a)\nprint(a)\n"
    assert len(name_faults(Module("mlxcone.kkt", "mlxcone", source))) == 3
    assert name_faults(Module("mlxcone._linalg", "mlxcone", "mx.linalg.inv(a)")) == []
    assert name_faults(Module("mlxcone.report", "mlxcone", "print(a)")) == []


def test_private_names_are_seen() -> None:
    source = (
        "import mlxcone\n"
        "from mlxcone import solve, hidden\n"
        "from mlxcone.kkt import factor\n"
        "mlxcone.solve\n"
        "mlxcone.kkt\n"
    )
    module = Module("cvxpylayers_mlx.layer", LAYER, source)
    assert len(public_faults(module, {"solve"})) == 3
