"""What an installed package must do, run outside of the clone by tools/package.sh."""

import subprocess
import sys
from importlib import metadata, resources

ROUNDS = 5
# In one process: the difference of two would be lost in what the machine does beside.
IMPORT = """
import sys, time
import mlx.core, mlx.nn, cvxpy
before = set(sys.modules)
begin = time.perf_counter()
import mlxcone, cvxpylayers_mlx
seconds = time.perf_counter() - begin
print(seconds, *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def import_ours() -> tuple[float, set[str]]:
    """Seconds beyond what users import anyway, and the packages that came with it."""
    ran = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
    seconds, *packages = ran.stdout.split()
    return float(seconds), set(packages)


needed = {
    line.split(";")[0].split("[")[0].rstrip("<>=.0123456789, ")
    for line in metadata.requires("mlxcone") or []
    if "extra ==" not in line
}
assert needed == {"mlx", "cvxpy", "numpy", "scipy"}, needed
for package in ("mlxcone", "cvxpylayers_mlx"):
    assert resources.files(package).joinpath("py.typed").is_file(), package

imports = [import_ours() for _ in range(ROUNDS)]
seconds = min(seconds for seconds, _ in imports)
print(f"import: {seconds:.2f} s beyond mlx and cvxpy (least of {ROUNDS})")
# No bound on the time, which is the machine's as much as ours; on what costs time, one.
foreign = imports[0][1] - sys.stdlib_module_names
assert foreign == {"mlxcone", "cvxpylayers_mlx"}, foreign
