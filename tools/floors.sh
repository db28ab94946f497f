#!/bin/sh
# The test suite with the oldest versions that pyproject.toml declares for what a user needs.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" - << 'PY' > "$work/floors.txt"
import re
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for line in project["dependencies"]:
    name, floor = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
    print(f"{name}~={floor}.0" if floor.count(".") == 1 else f"{name}=={floor}")
PY
cat "$work/floors.txt"
case $(uname -s) in Linux) backend=cpu, ;; *) backend= ;; esac
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$work/floors.txt" ".[${backend}test]"
"$work/venv/bin/python" -m pytest --numprocesses=auto -q "$@"
