# %% [markdown]
# # A portfolio with transaction costs, end to end
#
# A linear model forecasts tomorrow's returns of six assets; a portfolio is chosen by a convex
# program that weighs forecast, risk and the cost of trading. The usual way fits the forecast by
# least squares and then optimizes. Here each signal gets a weight in the forecast that is trained
# for what the portfolio earns after costs, by differentiating through the program.

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

OUTPUT = Path("examples/output/portfolio.png")
ASSETS, SIGNALS, DAYS, TRAIN = 6, 8, 5400, 2400
AVERSION, FEE, SPAN, WINDOWS, STEPS = 4.0, 0.005, 8, 80, 16
rng = np.random.default_rng(3)

# %% [markdown]
# ## Data
#
# Returns with three common factors and fat tails. Four signals forecast them a little: two change
# from day to day, two slowly. Four are noise.

# %%
loadings = rng.normal(0.0, 0.006, (ASSETS, 3))
memory = np.array([0.0, 0.0, 0.97, 0.97, 0.0, 0.97, 0.0, 0.97])
signals = rng.standard_normal((DAYS, SIGNALS))
for day in range(1, DAYS):
    signals[day] = memory * signals[day - 1] + np.sqrt(1 - memory**2) * signals[day]
predictive = np.zeros((ASSETS, SIGNALS))
predictive[:, :4] = rng.normal(0.0, 0.002, (ASSETS, 4))
noise = 0.006 * rng.standard_t(4, (DAYS, ASSETS)) + rng.standard_t(4, (DAYS, 3)) @ loadings.T
returns = 0.0003 + signals @ predictive.T + noise
covariance = np.cov(returns[:TRAIN].T)
explained = np.var(signals @ predictive.T) / np.var(returns)
print(f"{DAYS} days, {ASSETS} assets; signals explain {100 * explained:.1f} % of the variance")

# %% [markdown]
# ## The layer
#
# Its parameters are the forecast and what is held before trading.

# %%
weights = cp.Variable(ASSETS)
forecast, held = cp.Parameter(ASSETS), cp.Parameter(ASSETS)
root = np.linalg.cholesky(covariance).T
utility = (
    forecast @ weights
    - 0.5 * AVERSION * cp.sum_squares(root @ weights)
    - FEE * cp.norm1(weights - held)
)
problem = cp.Problem(cp.Maximize(utility), [cp.sum(weights) == 1, weights >= 0])
layer = CvxpyLayer(problem, parameters=[forecast, held], variables=[weights])

inputs = mx.array(np.column_stack([np.ones(DAYS), signals]).astype(np.float32))
outcome = mx.array(returns.astype(np.float32))
scale = 1e-2  # forecasts are hundredths, coefficients are not


def trade(coefficients, begins):
    """What eight days of trading earn, less risk and fees, and how much is traded; per window."""
    before, earned, traded = mx.full((len(begins), ASSETS), 1.0 / ASSETS), 0.0, 0.0
    for day in range(SPAN):
        (w,) = layer(scale * inputs[begins + day] @ coefficients, before)
        gain = mx.sum(w * outcome[begins + day], axis=1)
        turnover = mx.sum(mx.abs(w - before), axis=1)
        earned += gain - 0.5 * AVERSION * mx.square(gain) - FEE * turnover
        traded += turnover
        before = w
    return 1e4 * earned / SPAN, traded / SPAN


def loss(coefficients, begins):
    """What is not earned, in basis points a day."""
    return -mx.mean(trade(coefficients, begins)[0])


# %% [markdown]
# ## Training
#
# It starts from the least-squares forecast, and learns how far to trust each signal. A forecast
# that is right for tomorrow is not what is worth trading on: fees are paid today, and a slow signal
# pays for many days. The gradient passes through eight days of trading, one program a day, 80
# windows at a time.

# %%
design = np.array(inputs[:TRAIN]).astype(float)
fitted = np.linalg.lstsq(design, returns[:TRAIN], rcond=None)[0]
start = mx.array((fitted / scale).astype(np.float32))
parameters, optimizer = {"trust": mx.ones((SIGNALS + 1, 1))}, optim.Adam(0.1)
step = mx.value_and_grad(lambda trust, begins: loss(trust * start, begins))
losses = []
began = time.perf_counter()
for _ in (bar := tqdm(range(STEPS), unit="step")):
    begins = mx.array(rng.choice(TRAIN - SPAN, WINDOWS, replace=False))
    value, gradient = step(parameters["trust"], begins)
    parameters = optimizer.apply_gradients({"trust": gradient}, parameters)
    mx.eval(parameters, optimizer.state)
    losses.append(value.item())
    bar.set_postfix(earned=f"{-losses[-1]:.1f} bp/day")
seconds = time.perf_counter() - began
print(f"{STEPS} steps of {SPAN * WINDOWS} programs in {seconds:.1f} s")

# %% [markdown]
# ## Test
#
# On 375 windows of days that no one has seen, in one batch.

# %%
learned = parameters["trust"] * start
print("trust in each signal:", np.array(parameters["trust"])[1:, 0].round(2))
unseen = mx.arange(TRAIN, DAYS - SPAN, SPAN)
results = {}
for name, coefficients in (("least squares", start), ("end to end", learned)):
    earned, traded = (np.array(v) for v in trade(coefficients, unseen))
    results[name] = earned, traded
    error = earned.std() / np.sqrt(len(earned))
    print(f"{name}: {earned.mean():.1f} +- {error:.1f} bp a day, {traded.mean():.3f} traded a day")
gain = results["end to end"][0] - results["least squares"][0]
print(f"difference: {gain.mean():.1f} +- {gain.std() / np.sqrt(len(gain)):.1f} bp a day")

# %% [markdown]
# ## Check
#
# Ten portfolios against CVXPY with Clarabel, and the gradient against central differences of the
# same.


# %%
def by_clarabel(forecasts, before):
    """Portfolios, one by one."""
    found = []
    for forecast.value, held.value in zip(forecasts, before, strict=True):
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
        found.append(weights.value)
    return np.stack(found)


some = mx.array(rng.choice(TRAIN, 10))
forecasts = np.array(scale * inputs[some] @ learned).astype(float)
before = rng.dirichlet(np.full(ASSETS, 2.0), 10).astype(np.float32).astype(float)
arrays = [mx.array(v.astype(np.float32)) for v in (forecasts, before)]
difference = np.abs(np.array(layer(*arrays)[0]) - by_clarabel(forecasts, before)).max()
mix = rng.standard_normal((10, ASSETS))
total = mx.array(mix.astype(np.float32))
gradients = mx.grad(lambda f, h: mx.sum(total * layer(f, h)[0]), argnums=(0, 1))(*arrays)
along = 1e-3 * rng.standard_normal(forecasts.shape), 1e-2 * rng.standard_normal(before.shape)
along[1][:] -= along[1].mean(axis=1, keepdims=True)
ends = [
    np.sum(mix * by_clarabel(forecasts + h * along[0], before + h * along[1]))
    for h in (1e-3, -1e-3)
]
slope = (ends[0] - ends[1]) / 2e-3
found = sum(np.sum(np.array(g) * v) for g, v in zip(gradients, along, strict=True))
print(f"portfolios: largest difference {difference:.1e}; gradient {found:.5f}, slope {slope:.5f}")
assert difference < 1e-4
assert abs(found - slope) < 1e-3 * abs(slope)
assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
axes[0].plot([-value for value in losses])
axes[0].set(xlabel="step", ylabel="earned in training, basis points a day")
for place, (earned, traded) in enumerate(results.values()):
    error = earned.std() / np.sqrt(len(earned))
    axes[1].bar(place, earned.mean(), yerr=error, width=0.6)
    axes[1].text(place, 0.5, f"trades {traded.mean():.2f} a day", ha="center", color="white")
axes[1].set(xticks=[0, 1], xticklabels=list(results), ylabel="earned in the test, bp a day")
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
