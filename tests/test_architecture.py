"""The layout of the packages, kept true by a walk over the import graph.

A folder of mlxcone is a wing, and so is a module beside the folders. A wing imports only from wings
that stand left of it in ``WINGS``; inside of a folder no imports may run in a circle.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOLVER = "mlxcone"
LAYER = "cvxpylayers_mlx"
TESTING = "mlxcone.testing"

# From left to right.
WINGS = (
    "_version",
    "settings",
    "status",
    "backend",
    "solution",
    "cones",
    "program",
    "sparse_map",
    "report",
    "kkt",
    "methods",
    "cascade",
    "fixed_length",
    "large",
    "derivatives",
    "solver",
    "cvxpy_interface",
    "distributed",
    "nn",
    "plots",
    "__main__",
)

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
LINALG_CALLER = "mlxcone.backend.linalg"
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


OWN_MODULES = [n for n in SOLVER_MODULES if n != SOLVER and not is_in(n, TESTING)]


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


def target_of(imported: Import, known: Iterable[str]) -> str:
    """The module that an import reaches: ``from package import module`` reaches the module."""
    inner = f"{imported.module}.{imported.name}"
    return inner if inner in known else imported.module


def wing_of(name: str) -> str:
    """The folder of mlxcone that a module is in, or the module itself."""
    return name.removeprefix(SOLVER + ".").partition(".")[0]


def inner_imports(module: Module, known: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Line and target of each import of mlxcone's own modules."""
    for imported in imports_of(module):
        judges = module.name == SELF_CHECK and is_in(imported.module, TESTING)
        target = target_of(imported, known)
        if is_in(target, SOLVER) and not judges:
            yield imported.line, target


def wing_faults(module: Module, known: Iterable[str], wings: Sequence[str]) -> list[str]:
    """Imports of mlxcone's own modules from wings that do not stand left of the module's own."""
    faults, own = [], wing_of(module.name)
    for line, target in inner_imports(module, known):
        there = wing_of(target)
        if there not in wings or wings.index(there) > wings.index(own):
            faults.append(f"{module.name}:{line} ({own}) imports {target} ({there})")
    return faults


def circles(modules: dict[str, Module]) -> list[str]:
    """Modules of one wing whose imports lead back to themselves."""
    graph = {
        name: {
            target
            for _, target in inner_imports(module, modules)
            if wing_of(target) == wing_of(name) and target in modules
        }
        for name, module in modules.items()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


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


def test_every_wing_has_a_place() -> None:
    there = {wing_of(name) for name in SOLVER_MODULES if name != SOLVER}
    assert there - {"testing"} == set(WINGS)


@pytest.mark.parametrize("name", sorted(OWN_MODULES))
def test_wings_import_from_the_left(name: str) -> None:
    assert wing_faults(SOLVER_MODULES[name], SOLVER_MODULES, WINGS) == []


def test_no_imports_run_in_a_circle() -> None:
    assert circles({name: SOLVER_MODULES[name] for name in OWN_MODULES}) == []


@pytest.mark.parametrize("name", sorted(LAYER_MODULES))
def test_layer_uses_public_names_only(name: str) -> None:
    import mlxcone

    assert public_faults(LAYER_MODULES[name], set(mlxcone.__all__)) == []


# The checks themselves: each must see the fault it is there for.


_THERE = ("mlxcone.backend.linalg", "mlxcone.cones.base", "mlxcone.cones.soc", "mlxcone.cascade")


@pytest.mark.parametrize(
    "source",
    [
        "import mlxcone.cascade",
        "from mlxcone import cascade",
        "from mlxcone.cascade import run",
        "from .. import cascade",
        "from ..cascade import run",
        "def f():\n    from mlxcone.cascade import run",
        "import mlxcone",
        "import importlib\nimportlib.import_module('mlxcone.cascade')",
    ],
)
def test_import_from_the_right_is_seen(source: str) -> None:
    module = Module("mlxcone.cones.soc", "mlxcone.cones", source)
    assert len(wing_faults(module, _THERE, ("backend", "cones", "cascade"))) == 1


def test_import_from_the_left_is_allowed() -> None:
    source = "import mlx.core as mx\nfrom mlxcone.backend import linalg\nfrom .base import Cone\n"
    module = Module("mlxcone.cones.soc", "mlxcone.cones", source)
    assert wing_faults(module, _THERE, ("backend", "cones", "cascade")) == []


def test_circle_is_seen() -> None:
    sources = {
        "mlxcone.cones.soc": "from .base import Cone",
        "mlxcone.cones.base": "from . import soc",
    }
    modules = {name: Module(name, "mlxcone.cones", text) for name, text in sources.items()}
    assert set(circles(modules)) == set(modules)
    modules["mlxcone.cones.base"] = Module("mlxcone.cones.base", "mlxcone.cones", "import mlx")
    assert circles(modules) == []


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
    assert (
        name_faults(Module("mlxcone.backend.linalg", "mlxcone.backend", "mx.linalg.inv(a)")) == []
    )
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
