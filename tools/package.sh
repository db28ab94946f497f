#!/bin/sh
# Build wheel and sdist, install each in an environment with nothing else in it, and try it there.
set -eu
cd "$(dirname "$0")/.."
rm -rf dist
"$PY" -m build --outdir dist . > /dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for file in dist/*.whl dist/*.tar.gz; do
    echo "==> $file"
    "$PYTHON" -m venv "$work/venv"
    extra=${MLX_BACKEND:+[$MLX_BACKEND]}
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$PWD/$file$extra"
    (
        cd "$work"
        venv/bin/python -m mlxcone --no-benchmark
        venv/bin/python "$OLDPWD/tools/try_install.py"
    )
    rm -rf "$work/venv"
done
