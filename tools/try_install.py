"""What an installed package must do, run outside of the clone by tools/package.sh."""

import subprocess
import sys
import time
from importlib import metadata, resources

LIMIT = 0.5  # seconds of import beyond mlx and cvxpy
ROUNDS = 5


def seconds(code: str) -> float:
    """Least time of a fresh interpreter: what else the machine does is not ours."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - begin)
    return min(times)


needed = {
    line.split(";")[0].split("[")[0].rstrip("<>=.0123456789, ")
    for line in metadata.requires("mlxcone") or []
    if "extra ==" not in line
}
assert needed == {"mlx", "cvxpy", "numpy", "scipy"}, needed
for package in ("mlxcone", "cvxpylayers_mlx"):
    assert resources.files(package).joinpath("py.typed").is_file(), package

base = seconds("import mlx.core, mlx.nn, cvxpy")
with_ours = seconds("import mlx.core, mlx.nn, cvxpy, mlxcone, cvxpylayers_mlx")
print(f"import: {with_ours - base:.2f} s beyond mlx and cvxpy ({base:.2f} s)")
assert with_ours - base < LIMIT
