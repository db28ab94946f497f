# %% [markdown]
# # A portfolio with transaction costs, end to end
#
# A linear model forecasts tomorrow's returns of eight assets; a portfolio is chosen by a convex
# program that weighs forecast, risk and the cost of trading. The usual way fits the forecast by
# least squares and then optimizes. Here the forecast is trained for what the portfolio earns after
# costs, by differentiating through the program.

# %%
import time
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from tqdm.auto import tqdm

from cvxpylayers_mlx import CvxpyLayer

OUTPUT = Path("examples/output/portfolio.png")
ASSETS, SIGNALS, DAYS, TRAIN = 8, 12, 900, 600
AVERSION, FEE, STEPS = 8.0, 0.002, 80
rng = np.random.default_rng(3)

# %% [markdown]
# ## Data
#
# Returns with three common factors, fat tails, and a forecastable part of about one percent of the
# variance, as markets have it: a few of the signals predict, slowly, and most are noise.

# %%
loadings = rng.normal(0.0, 0.006, (ASSETS, 3))
signals = np.zeros((DAYS, SIGNALS))
for day in range(1, DAYS):
    signals[day] = 0.95 * signals[day - 1] + np.sqrt(1 - 0.95**2) * rng.standard_normal(SIGNALS)
predictive = np.zeros((ASSETS, SIGNALS))
predictive[:, :3] = rng.normal(0.0, 0.0016, (ASSETS, 3))
noise = 0.008 * rng.standard_t(4, (DAYS, ASSETS)) + rng.standard_t(4, (DAYS, 3)) @ loadings.T
returns = 0.0003 + signals @ predictive.T + noise
covariance = np.cov(returns[:TRAIN].T)
explained = np.var(signals @ predictive.T) / np.var(returns)
print(f"{DAYS} days, {ASSETS} assets; signals explain {100 * explained:.1f} % of the variance")

# %% [markdown]
# ## The layer
#
# Forecast and yesterday's weights are its parameters. `held` drifts little from day to day, so
# weights of a fixed-mix portfolio stand in for yesterday's while training: every day of a batch can
# then be solved at once. In the test, each day starts from what the day before left.

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


def earned(w, before, outcome):
    """Return less risk and fees, of each day."""
    risk = mx.square(mx.sum(w * outcome, axis=1))
    return (
        mx.sum(w * outcome, axis=1)
        - 0.5 * AVERSION * risk
        - FEE * mx.sum(mx.abs(w - before), axis=1)
    )


def loss(coefficients, days, before):
    """What was not earned, in basis points a day."""
    (w,) = layer(scale * inputs[days] @ coefficients, before)
    return -1e4 * mx.mean(earned(w, before, outcome[days]))


# %% [markdown]
# ## Training
#
# It starts from the least-squares forecast; 100 days a step.

# %%
design = np.array(inputs[:TRAIN]).astype(float)
fitted = np.linalg.lstsq(design, returns[:TRAIN], rcond=None)[0]
start = mx.array((fitted / scale).astype(np.float32))
parameters, optimizer = {"coefficients": start}, optim.Adam(3e-3)
step = mx.value_and_grad(loss)
losses = []
began = time.perf_counter()
for _ in (bar := tqdm(range(STEPS), unit="step")):
    days = rng.choice(TRAIN - 1, 100, replace=False)
    # Yesterday's weights, as the model has them now.
    yesterday = mx.array(np.maximum(days - 1, 0))
    equal = mx.full((len(days), ASSETS), 1.0 / ASSETS)
    (before,) = layer(scale * inputs[yesterday] @ parameters["coefficients"], equal)
    value, gradient = step(parameters["coefficients"], mx.array(days), mx.stop_gradient(before))
    parameters = optimizer.apply_gradients({"coefficients": gradient}, parameters)
    mx.eval(parameters, optimizer.state)
    losses.append(value.item())
    bar.set_postfix(earned=f"{-losses[-1]:.1f} bp/day")
print(f"{STEPS} steps of 200 programs in {time.perf_counter() - began:.1f} s")

# %% [markdown]
# ## Test
#
# Day by day, on days that no one has seen, each from the weights of the day before.


# %%
def backtest(coefficients):
    """Wealth after fees, and how much was traded a day."""
    held_now = mx.full((ASSETS,), 1.0 / ASSETS)
    wealth, traded = [1.0], []
    for day in range(TRAIN, DAYS):
        (w,) = layer(scale * inputs[day] @ coefficients, held_now)
        turnover = mx.sum(mx.abs(w - held_now)).item()
        wealth.append(wealth[-1] * (1 + mx.sum(w * outcome[day]).item() - FEE * turnover))
        traded.append(turnover)
        grown = w * (1 + outcome[day])
        held_now = grown / mx.sum(grown)
    return np.array(wealth), float(np.mean(traded))


learned = parameters["coefficients"]
runs = {"end to end": backtest(learned), "least squares": backtest(start)}
equal_weights = np.concatenate([[1.0], np.cumprod(1 + returns[TRAIN:].mean(axis=1))])
for name, (wealth, traded) in runs.items():
    print(
        f"{name}: {100 * (wealth[-1] - 1):.1f} % in {DAYS - TRAIN} days, {traded:.3f} traded a day"
    )
print(f"equal weights: {100 * (equal_weights[-1] - 1):.1f} %")

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
gradient = mx.grad(lambda f: mx.sum(mx.array(mix.astype(np.float32)) * layer(f, arrays[1])[0]))
direction = rng.standard_normal(forecasts.shape) * 1e-3
ends = [np.sum(mix * by_clarabel(forecasts + h * direction, before)) for h in (1e-3, -1e-3)]
slope, found = (ends[0] - ends[1]) / 2e-3, np.sum(np.array(gradient(arrays[0])) * direction)
print(f"portfolios: largest difference {difference:.1e}; gradient {found:.5f}, slope {slope:.5f}")
assert difference < 1e-4
assert abs(found - slope) < 1e-3 * abs(slope)
assert runs["end to end"][0][-1] > runs["least squares"][0][-1]

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
axes[0].plot([-value for value in losses])
axes[0].set(xlabel="step", ylabel="earned in training, basis points a day")
for name, (wealth, _) in runs.items():
    axes[1].plot(wealth, label=name)
axes[1].plot(equal_weights, label="equal weights", color="#a0a0a0")
axes[1].set(xlabel="day of the test", ylabel="wealth after fees")
axes[1].legend(frameon=False)
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
