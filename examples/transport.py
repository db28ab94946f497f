# %% [markdown]
# # What is the cost, if that is the plan?
#
# Entropic optimal transport spreads goods from sources to sinks at the least cost, plus a little
# entropy (Cuturi 2013, arXiv 1306.0895). Here the plans of three days are observed, and the cost of
# distance and of each of two tolls is learned from them, by differentiating through the program:
# inverse optimal transport.

# %%
import time
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from tqdm import tqdm

from cvxpylayers_mlx import CvxpyLayer

OUTPUT = Path("examples/output/transport.png")
SOURCES, SINKS, DAYS, ENTROPY, STEPS = 5, 6, 3, 0.5, 90
rng = np.random.default_rng(0)

# %% [markdown]
# Places in a unit square with a river through it and a mountain pass; supply and demand change from
# day to day.

# %%
sources, sinks = (
    np.column_stack([rng.permutation(np.linspace(0.05, 0.95, k)) for _ in range(2)])
    for k in (SOURCES, SINKS)
)
distance = np.linalg.norm(sources[:, None] - sinks[None], axis=2)
river = ((sources[:, None, 0] - 0.5) * (sinks[None, :, 0] - 0.5) < 0).astype(float)
mountains = ((sources[:, None, 1] - 0.6) * (sinks[None, :, 1] - 0.6) < 0).astype(float)
features = np.stack([distance, river, mountains])
true_prices = np.array([1.0, 0.4, 0.25])
supply = rng.dirichlet(np.full(SOURCES, 5.0), DAYS)
demand = rng.dirichlet(np.full(SINKS, 5.0), DAYS)


def sinkhorn(cost, a, b):
    """The plan, by Sinkhorn's iteration: an algorithm that shares nothing with ours."""
    kernel, u = np.exp(-cost / ENTROPY), np.ones(len(a))
    for _ in range(5000):
        v = b / (kernel.T @ u)
        u = a / (kernel @ v)
    return u[:, None] * kernel * v


cost_true = np.tensordot(true_prices, features, 1)
observed = np.stack([sinkhorn(cost_true, a, b) for a, b in zip(supply, demand, strict=True)])
noisy = observed * np.exp(0.05 * rng.standard_normal(observed.shape))

# %% [markdown]
# ## The layer

# %%
plan = cp.Variable((SOURCES, SINKS))
cost = cp.Parameter((SOURCES, SINKS))
a, b = cp.Parameter(SOURCES, nonneg=True), cp.Parameter(SINKS, nonneg=True)
objective = cp.sum(cp.multiply(cost, plan)) - ENTROPY * cp.sum(cp.entr(plan))
problem = cp.Problem(
    cp.Minimize(objective), [cp.sum(plan, axis=1) == a, cp.sum(plan[:, 1:], axis=0) == b[1:]]
)
layer = CvxpyLayer(problem, parameters=[cost, a, b], variables=[plan])

planes = mx.array(features.astype(np.float32))
days = [mx.array(v.astype(np.float32)) for v in (supply, demand)]
wanted = mx.array(noisy.astype(np.float32))


def plans(prices):
    """Of all days, in one batch; they share the cost."""
    return layer(mx.sum(prices[:, None, None] * planes, axis=0), *days)[0]


def loss(prices):
    """Relative squared error of the plans."""
    return mx.sum(mx.square(plans(prices) - wanted)) / mx.sum(mx.square(wanted))


# %% [markdown]
# ## Learning the prices

# %%
state, optimizer = (
    {"prices": mx.array([0.3, 0.0, 0.0])},
    optim.Adam(optim.cosine_decay(0.1, STEPS), bias_correction=True),
)
step = mx.value_and_grad(loss)
losses, path = [], []
began = time.perf_counter()
for _ in (bar := tqdm(range(STEPS), unit="step")):
    value, gradient = step(state["prices"])
    path.append(np.array(state["prices"]))
    state = optimizer.apply_gradients({"prices": gradient}, state)
    mx.eval(state, optimizer.state)
    losses.append(value.item())
    bar.set_postfix(error=f"{losses[-1]:.1e}")
print(f"{STEPS} steps of {DAYS} programs in {time.perf_counter() - began:.1f} s")
learned = np.array(state["prices"]).astype(float)
print(f"prices: learned {learned.round(3)}, true {true_prices}")

# %% [markdown]
# ## Check
#
# Plans against Sinkhorn's, and the gradient against central differences of Sinkhorn's plans.


# %%
def reference(prices):
    """Plans of all days."""
    c = np.tensordot(prices, features, 1)
    return np.stack([sinkhorn(c, a, b) for a, b in zip(supply, demand, strict=True)])


def reference_loss(prices):
    """Their error."""
    return np.sum((reference(prices) - noisy) ** 2) / np.sum(noisy**2)


point = path[10].astype(float)
difference = np.abs(np.array(plans(mx.array(path[10]))) - reference(point)).max()
_, gradient = step(mx.array(path[10]))
slopes = [
    (reference_loss(point + 1e-6 * e) - reference_loss(point - 1e-6 * e)) / 2e-6 for e in np.eye(3)
]
mismatch = np.linalg.norm(np.array(gradient) - slopes) / np.linalg.norm(slopes)
print(f"plans: largest difference {difference:.1e}; gradient: relative difference {mismatch:.1e}")
assert difference < 1e-5
assert mismatch < 1e-3
assert np.abs(learned - true_prices).max() < 0.1

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, column, true in zip(
    ("distance", "river", "mountains"), np.array(path).T, true_prices, strict=True
):
    (line,) = axes[0].plot(column, label=name)
    axes[0].axhline(true, color=line.get_color(), linestyle=":")
axes[0].set(xlabel="step", ylabel="price (dotted: true)")
axes[0].legend(frameon=False)
final = np.array(plans(state["prices"]))[0]
for i, source in enumerate(sources):
    for j, sink in enumerate(sinks):
        axes[1].plot(*zip(source, sink, strict=True), color="#4060a0", linewidth=40 * final[i, j])
axes[1].scatter(*sources.T, s=800 * supply[0], color="#2a9d4a", zorder=2, label="supply")
axes[1].scatter(*sinks.T, s=800 * demand[0], color="#d1495b", zorder=2, label="demand")
axes[1].axvline(0.5, color="#80b0e0", linewidth=4, zorder=0)
axes[1].axhline(0.6, color="#c0b090", linewidth=4, zorder=0)
axes[1].set(xticks=[], yticks=[], title="plan of the first day, from learned prices")
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
