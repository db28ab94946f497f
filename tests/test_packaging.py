"""What the files beside the code say of it."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest

import mlxcone

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_comes_from_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == mlxcone.__version__  # type: ignore[index]


def test_nothing_else_is_needed_at_run_time() -> None:
    names = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}  # type: ignore[index]
    assert names == {"mlx", "cvxpy", "numpy", "scipy"}


def test_every_extra_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    explained = re.sub(r"^#.*\n((?:cpu|cuda12|cuda13) = .*\n)+", "", section, flags=re.M)
    for name in PROJECT["optional-dependencies"]:
        if name not in ("cpu", "cuda12", "cuda13"):
            assert re.search(rf"^#.*\n{name} = ", explained, re.M), name


def test_what_the_profile_times_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    where = importlib.import_module("where")
    for owner, name in (place for places in where.PARTS.values() for place in places):
        assert hasattr(owner, name), (owner, name)


def test_examples_have_their_notebooks() -> None:
    alone = {"demo", "data_parallel"}  # the first is `make demo`, the second wants mlx.launch
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - alone
    notebooks = {path.stem for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")}
    assert scripts == notebooks
    listed = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for name in scripts | alone:
        assert f"`{name}.py`" in listed


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebook_is_its_script_run(path: Path) -> None:
    """The code of today, run from the first cell to the last, and of progress bars the end."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    lines = [line for c in code for line in "".join(c["source"]).splitlines()]
    script = (ROOT / "examples" / f"{path.stem}.py").read_text(encoding="utf-8").splitlines()
    kept = [[line for line in text if line.strip() and line[0] != "#"] for text in (lines, script)]
    assert kept[0] == kept[1]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    texts = ["".join(o["text"]) for c in code for o in c["outputs"] if "text" in o]
    assert "\r" not in "".join(texts)
    assert all(len(c["outputs"]) <= 8 for c in code)
    assert any(o["output_type"] == "display_data" for c in code for o in c["outputs"]), "no picture"
