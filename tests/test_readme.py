"""What README.md and the documentation show must run, and what they name must exist."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PYTHON_SPELLINGS = {"py", "python", "python3", "pycon", "ipython"}
SHELL_SPELLINGS = {"sh", "bash", "shell", "console", "zsh"}

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line its code starts on, and the code."""

    language: str
    line: int
    code: str


def read_blocks(text: str) -> list[Block]:
    """Collects the fenced blocks of a Markdown text."""
    blocks = []
    fence, language, start, body = "", "", 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if not fence and match:
            words = match["info"].split()
            fence, language = match["fence"], words[0].lower() if words else ""
            start, body = number + 1, []
        elif fence and line.strip() == fence:
            blocks.append(Block(language, start, "\n".join(body) + "\n"))
            fence = ""
        elif fence:
            body.append(line)
    assert not fence, f"the block that starts on line {start} is not closed"
    return blocks


TEXT = README.read_text(encoding="utf-8")
BLOCKS = read_blocks(TEXT)
EXAMPLES = [block for block in BLOCKS if block.language == "python"]


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_python_is_always_spelled_python() -> None:
    """So that no example escapes the test below."""
    odd = [b.line for b in BLOCKS if b.language in PYTHON_SPELLINGS - {"python"}]
    odd += [b.line for b in BLOCKS if not b.language and re.search(r"^import ", b.code, re.M)]
    assert odd == []


def run(script: str, where: str, tmp_path: Path, *through: str) -> None:
    """A script in a fresh process and folder, alone or as the argument of another."""
    path = tmp_path / "example.py"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *through, str(path)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{where}:\n{done.stdout}{done.stderr}"


def placed(blocks: list[Block]) -> str:
    """Their code, each line where it stands in the text, so that tracebacks name it."""
    script = ""
    for block in blocks:
        script += "\n" * (block.line - 1 - script.count("\n")) + block.code
    return script


@pytest.mark.parametrize("block", EXAMPLES, ids=[f"line{block.line}" for block in EXAMPLES])
def test_example_runs(block: Block, tmp_path: Path) -> None:
    """Each example of the README runs by itself, as when a reader pastes it."""
    run(placed([block]), f"README.md, line {block.line}", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page: Path, tmp_path: Path) -> None:
    """The examples of a page run one after the other, on any device."""
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    odd = [b.line for b in blocks if b.language in PYTHON_SPELLINGS - {"python"}]
    assert odd == []
    examples = [block for block in blocks if block.language == "python"]
    if examples:
        run(placed(examples), str(page), tmp_path, str(ROOT / "tests" / "pretended_gpu.py"))


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.relative_to(ROOT / "docs").as_posix() in contents


def test_public_names_are_documented() -> None:
    """In the reference, each with a docstring of its own."""
    import cvxpylayers_mlx
    import mlxcone

    for module in (mlxcone, cvxpylayers_mlx):
        reference = (ROOT / "docs" / "api" / f"{module.__name__}.md").read_text(encoding="utf-8")
        shown = set(re.findall(rf"^::: {module.__name__}\.(\w+)$", reference, re.M))
        modules = {"distributed", "nn", "plots", "__version__"}  # with pages of their own
        assert shown == set(module.__all__) - modules
    for module in (mlxcone, cvxpylayers_mlx, mlxcone.nn):
        for name in set(module.__all__) - {"__version__"}:
            text = getattr(module, name).__doc__
            assert text and len(text.split()) > 4, name


def public_callables() -> dict[str, tuple[Any, str]]:
    """What can be called, and its docstring; a class's arguments are in the class's."""
    import cvxpylayers_mlx
    import mlxcone
    from mlxcone import testing

    found: dict[str, tuple[Any, str]] = {}
    parts = mlxcone.nn, mlxcone.plots, mlxcone.distributed, testing
    for module in (mlxcone, cvxpylayers_mlx, *parts):
        own = [n for n, v in vars(module).items() if inspect.getmodule(v) is module]
        for name in getattr(module, "__all__", [n for n in own if n[0] != "_"]):
            item, label = getattr(module, name), f"{module.__name__}.{name}"
            if not callable(item):
                continue
            if not inspect.isclass(item):
                found[label] = (item, item.__doc__ or "")
                continue
            if "__init__" in vars(item):
                found[label] = (item.__init__, item.__doc__ or "")
            for method, value in vars(item).items():
                if inspect.isfunction(value) and (method[0] != "_" or method == "__call__"):
                    found[f"{label}.{method}"] = (value, value.__doc__ or "")
    return found


# What CVXPY calls, and what a watcher is told, which `mlxcone.Watcher` says.
THEIRS = r"\.(MLXCONE|History|Progress)\."


def test_every_argument_is_documented() -> None:
    """By its name, in the docstring of what takes it."""
    missing = []
    for label, (function, text) in public_callables().items():
        names = [n for n in inspect.signature(function).parameters if n not in ("self", "cls")]
        if not re.search(THEIRS, label):
            missing += [f"{label}: {n}" for n in names if not re.search(rf"\b{n}\b", text)]
    assert missing == []


def test_equations_that_are_cited_exist() -> None:
    mathematics = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", mathematics)]
    assert numbers == list(range(1, len(numbers) + 1))
    cited: set[int] = set()
    for path in (ROOT / "mlxcone").rglob("*.py"):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for found in re.findall(r"docs/mathematics.md,? equations? ([\d, and]*\d)", text):
            cited |= {int(n) for n in re.findall(r"\d+", found)}
        for found in re.findall(r"[Ee]quations? ([\d, and]*\d) of docs/mathematics.md", text):
            cited |= {int(n) for n in re.findall(r"\d+", found)}
    assert cited <= set(numbers)
    assert len(cited) >= 10


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.M))


def named_targets(text: str) -> set[str]:
    """The targets of the `make` commands that a text shows as code, in spans or shell blocks."""
    fenced = read_blocks(text)
    code = [b.code for b in fenced if b.language in SHELL_SPELLINGS | {""}]
    code += re.findall(r"`([^`\n]+)`", text)
    targets = set()
    for line in "\n".join(code).splitlines():
        for command in re.split(r"&&|;|\|", line.partition("#")[0]):
            words = command.strip().removeprefix("$ ").split()
            if words[:1] == ["make"]:
                targets |= {w for w in words[1:] if "=" not in w and not w.startswith("-")}
    return targets


def test_make_targets_exist() -> None:
    named = named_targets(TEXT)
    assert {"demo", "test"} <= named, "README.md should name the two commands to start with"
    assert named - make_targets() == set()


def test_make_commands_are_found_in_code_only() -> None:
    text = "We make sure. Type `make demo`.\n\n```sh\ncd x && make test A=1  # make it\n```\n"
    assert named_targets(text) == {"demo", "test"}
