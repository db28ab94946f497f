#!/bin/sh
# Build wheel and sdist, and try each in an environment with nothing else in it.
set -eu
cd "$(dirname "$0")/.."
rm -rf dist
"$PY" -m build --no-isolation --outdir dist . > /dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$PYTHON" -m venv "$work/venv"
extra=${MLX_BACKEND:+[$MLX_BACKEND]}
for file in dist/*.whl dist/*.tar.gz; do
    echo "==> $file"
    # The second finds what the first needed, and nothing of the first itself.
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$PWD/$file$extra"
    (
        cd "$work"
        venv/bin/python -m mlxcone --no-benchmark
        venv/bin/python "$OLDPWD/tools/try_install.py"
    )
    "$work/venv/bin/python" -m pip uninstall --quiet --yes mlxcone
done
