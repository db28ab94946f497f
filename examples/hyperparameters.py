# %% [markdown]
# # Which features to trust: the gradient of a logistic regression's penalties
#
# A logistic regression on scikit-learn's breast-cancer data has a quadratic penalty for each
# feature. The penalties are learned: every step fits the regression, a convex program with
# exponential cones, measures the error on other patients, and differentiates it through the fit.

# %%
import time
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from tqdm import tqdm

from cvxpylayers_mlx import CvxpyLayer

OUTPUT = Path("examples/output/hyperparameters.png")
FIT, FEATURES, STEPS = 40, 10, 25
rng = np.random.default_rng(0)

# %% [markdown]
# The ten mean features, standardized, of 40 patients to fit, 300 to validate, the rest to test.

# %%
data = load_breast_cancer()
x, label = data.data[:, :FEATURES], 2.0 * data.target - 1.0
x = (x - x.mean(0)) / x.std(0)
order = rng.permutation(len(x))
fit, validation, test = order[:FIT], order[FIT : FIT + 300], order[FIT + 300 :]

# %% [markdown]
# ## The layer

# %%
weights = cp.Variable(FEATURES)
root = cp.Parameter(FEATURES, nonneg=True)  # square roots of the penalties: DPP wants them squared
margins = cp.multiply(label[fit], x[fit] @ weights)
objective = cp.sum(cp.logistic(-margins)) / FIT + cp.sum_squares(cp.multiply(root, weights))
problem = cp.Problem(cp.Minimize(objective))
layer = CvxpyLayer(problem, parameters=[root], variables=[weights])

arrays = [mx.array(v.astype(np.float32)) for v in (x[validation], label[validation])]


def loss(log_penalty):
    """Logistic error on the validation patients."""
    (w,) = layer(mx.exp(0.5 * log_penalty))
    return mx.mean(mx.logaddexp(mx.array(0.0), -arrays[1] * (arrays[0] @ w)))


# %% [markdown]
# ## Learning the penalties

# %%
start = mx.full((FEATURES,), float(np.log(1e-3)))
state, optimizer = {"log_penalty": start}, optim.Adam(0.3)
step = mx.value_and_grad(loss)
losses, path = [], []
began = time.perf_counter()
for _ in (bar := tqdm(range(STEPS), unit="step")):
    value, gradient = step(state["log_penalty"])
    path.append(state["log_penalty"])
    state = optimizer.apply_gradients({"log_penalty": gradient}, state)
    mx.eval(state, optimizer.state)
    losses.append(value.item())
    bar.set_postfix(error=f"{losses[-1]:.4f}")
seconds = time.perf_counter() - began
print(f"{STEPS} fits of {FIT} patients, with hyper-gradients, in {seconds:.1f} s")

# %% [markdown]
# ## Check
#
# The fit and the hyper-gradient against SciPy's BFGS on the same function, which is smooth.


# %%
def by_scipy(log_penalty):
    """The weights, by Newton's method in float64."""
    z, penalty = label[fit][:, None] * x[fit], np.exp(log_penalty)

    def value(w):
        return np.mean(np.logaddexp(0.0, -z @ w)) + penalty @ w**2

    def slope(w):
        return -z.T @ (1.0 / (1.0 + np.exp(z @ w))) / FIT + 2.0 * penalty * w

    def curvature(w):
        p = 1.0 / (1.0 + np.exp(z @ w))
        return (z * (p * (1.0 - p))[:, None]).T @ z / FIT + 2.0 * np.diag(penalty)

    w = minimize(value, np.zeros(FEATURES), jac=slope, hess=curvature, method="trust-exact").x
    for _ in range(3):
        w = w - np.linalg.solve(curvature(w), slope(w))
    return w


def error_of(w, some):
    """Logistic error on some patients."""
    return float(np.mean(np.logaddexp(0.0, -label[some] * (x[some] @ w))))


point = path[5]
reference = np.array(point).astype(float)
difference = np.abs(np.array(layer(mx.exp(0.5 * point))[0]) - by_scipy(reference)).max()
_, gradient = step(point)
slopes = [
    (
        error_of(by_scipy(reference + 1e-5 * e), validation)
        - error_of(by_scipy(reference - 1e-5 * e), validation)
    )
    / 2e-5
    for e in np.eye(FEATURES)
]
mismatch = np.linalg.norm(np.array(gradient) - slopes) / np.linalg.norm(slopes)
print(f"weights: largest difference {difference:.1e}; gradient: relative {mismatch:.1e}")
assert difference < 1e-4
assert mismatch < 1e-3

# %% [markdown]
# ## What it was good for

# %%
single = min(
    (np.full(FEATURES, p) for p in np.log(np.geomspace(1e-4, 1.0, 25))),
    key=lambda p: error_of(by_scipy(p), validation),
)
learned = np.array(state["log_penalty"]).astype(float)
candidates = {
    "at first": np.array(start).astype(float),
    "best single penalty": single,
    "learned penalties": learned,
}
tests = {name: error_of(by_scipy(p), test) for name, p in candidates.items()}
for name, error in tests.items():
    right = np.mean(label[test] * (x[test] @ by_scipy(candidates[name])) > 0)
    print(f"{name}: error {error:.4f}, {100 * right:.1f} % right, on {len(test)} test patients")
assert losses[-1] < losses[0]
assert tests["learned penalties"] < tests["at first"]

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
axes[0].plot(losses)
axes[0].axhline(error_of(by_scipy(single), validation), color="#a0a0a0", linestyle=":")
axes[0].set(xlabel="step", ylabel="validation error (dotted: best single penalty)")
names = [str(name).removeprefix("mean ") for name in data.feature_names[:FEATURES]]
axes[1].barh(names, np.exp(learned))
axes[1].set(xscale="log", xlabel="learned penalty")
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
