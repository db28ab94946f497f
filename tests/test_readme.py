"""What README.md shows must run, and what it tells a reader to type must exist."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
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


@pytest.mark.parametrize("block", EXAMPLES, ids=[f"line{block.line}" for block in EXAMPLES])
def test_example_runs(block: Block, tmp_path: Path) -> None:
    """Each example runs by itself in a fresh process, as when a reader pastes it."""
    script = tmp_path / "example.py"
    # Blank lines in front make a traceback name the line of the README.
    script.write_text("\n" * (block.line - 1) + block.code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"README.md, line {block.line}:\n{done.stdout}{done.stderr}"


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
