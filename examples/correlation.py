# %% [markdown]
# # Repairing correlations: a semidefinite program in a batch
#
# Correlations computed from data with gaps, pair by pair, need not fit together: the matrix has
# negative eigenvalues. The nearest correlation matrix is a semidefinite program (Higham 2002). How
# much to shrink towards no correlation first is learned, by differentiating through that program.

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from sklearn.datasets import load_wine
from tqdm import tqdm

from mlxcone.nn import Semidefinite

OUTPUT = Path("examples/output/correlation.png")
SAMPLE, MISSING, TRAIN, TEST, STEPS = 20, 0.4, 24, 200, 40
rng = np.random.default_rng(0)

# %% [markdown]
# Chemistry of 178 wines, 13 numbers each. A sample has 20 wines and lacks 40 % of the numbers.

# %%
wines = load_wine().data
full = np.corrcoef(wines.T)
order = len(full)


def pairwise(rows):
    """Correlations from what each pair of columns has in common."""
    found = np.eye(order)
    for i in range(order):
        for j in range(i):
            both = ~np.isnan(rows[:, i]) & ~np.isnan(rows[:, j])
            if both.sum() > 2:
                found[i, j] = found[j, i] = np.corrcoef(rows[both][:, [i, j]].T)[0, 1]
    return found


def draw(count):
    """Correlation matrices of samples with gaps."""
    found = []
    for _ in range(count):
        rows = wines[rng.choice(len(wines), SAMPLE, replace=False)].copy()
        rows[rng.uniform(size=rows.shape) < MISSING] = np.nan
        found.append(pairwise(rows))
    return np.clip(np.stack(found), -1.0, 1.0)


broken, unseen = draw(TRAIN), draw(TEST)
least = np.linalg.eigvalsh(unseen)[:, 0]
print(
    f"{np.mean(least < 0):.0%} of {TEST} matrices are indefinite, eigenvalues to {least.min():.2f}"
)

# %% [markdown]
# ## Learning how much to shrink

# %%
nearest = Semidefinite(order, unit_diagonal=True)
identity = mx.eye(order)
matrices, target = mx.array(broken.astype(np.float32)), mx.array(full.astype(np.float32))


def repaired(logit, raw):
    """Shrunk by a share between 0 and 1, then made a correlation matrix."""
    share = mx.sigmoid(logit)
    return nearest((1.0 - share) * raw + share * identity)


def loss(logit):
    """Mean squared error of the entries, against all wines."""
    return mx.mean(mx.square(repaired(logit, matrices) - target))


state, optimizer = {"logit": mx.array(-3.0)}, optim.Adam(0.2)
step = mx.value_and_grad(loss)
losses, shares = [], []
began = time.perf_counter()
for _ in (bar := tqdm(range(STEPS), unit="step")):
    value, gradient = step(state["logit"])
    shares.append(mx.sigmoid(state["logit"]).item())
    state = optimizer.apply_gradients({"logit": gradient}, state)
    mx.eval(state, optimizer.state)
    losses.append(value.item())
    bar.set_postfix(error=f"{losses[-1]:.4f}", share=f"{shares[-1]:.2f}")
seconds = time.perf_counter() - began
print(f"{STEPS} steps of {TRAIN} semidefinite programs in {seconds:.1f} s; share {shares[-1]:.3f}")

# %% [markdown]
# ## Check
#
# Against Higham's alternating projections with Dykstra's correction, and differences of them.


# %%
def by_projections(matrix):
    """The nearest correlation matrix."""
    correction, y = np.zeros_like(matrix), matrix.copy()
    for _ in range(20000):
        r = y - correction
        w, U = np.linalg.eigh(r)
        x = (U * np.maximum(w, 0.0)) @ U.T
        correction, before = x - r, y
        y = x.copy()
        np.fill_diagonal(y, 1.0)
        if np.abs(y - before).max() < 1e-12:
            break
    return y


def shrunk(logit, raw):
    """In float64."""
    share = 1.0 / (1.0 + np.exp(-logit))
    return (1.0 - share) * raw + share * np.eye(order)


some = broken[:4].astype(np.float32).astype(float)
found = np.array(repaired(mx.array(-2.0), matrices[:4]))
wanted = np.stack([by_projections(shrunk(-2.0, m)) for m in some])
difference = np.abs(found - wanted).max()
weights = rng.standard_normal(some.shape)
gradient = mx.grad(
    lambda t: mx.sum(mx.array(weights.astype(np.float32)) * repaired(t, matrices[:4]))
)(mx.array(-2.0)).item()
ends = [
    np.sum(weights * np.stack([by_projections(shrunk(-2.0 + h, m)) for m in some]))
    for h in (1e-4, -1e-4)
]
slope = (ends[0] - ends[1]) / 2e-4
print(f"matrices: largest difference {difference:.1e}; gradient {gradient:.5f}, slope {slope:.5f}")
assert difference < 1e-5
assert abs(gradient - slope) < 1e-3 * abs(slope)

# %% [markdown]
# ## On samples that no one has seen

# %%
fresh = mx.array(unseen.astype(np.float32))
candidates = {
    "as computed": unseen,
    "nearest": np.array(nearest(fresh)),
    "shrunk, nearest": np.array(repaired(state["logit"], fresh)),
}
errors = {k: np.sqrt(np.mean((v - full) ** 2, axis=(1, 2))) for k, v in candidates.items()}
for name, error in errors.items():
    smallest = np.linalg.eigvalsh(candidates[name])[:, 0].min()
    print(f"{name:<16} error {error.mean():.4f}, least eigenvalue {smallest:.1e}")
assert errors["shrunk, nearest"].mean() < errors["nearest"].mean() < errors["as computed"].mean()

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
axes[0].plot(shares, losses, marker=".")
axes[0].set(xlabel="share of shrinkage", ylabel="mean squared error, training")
axes[1].hist(least, bins=25, color="#a0a0a0")
axes[1].set(xlabel="least eigenvalue as computed", ylabel="samples")
axes[2].boxplot(list(errors.values()), tick_labels=list(errors))
axes[2].set(ylabel="error on unseen samples")
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
