# %% [markdown]
# # Learning a controller's model from what it should do
#
# A pendulum is balanced upright by model-predictive control with the right model: that is the
# expert. The learner has the same controller, with a model of its own that does not know gravity.
# It watches the expert's controls and learns the model by differentiating its own controls (Amos
# et al. 2018, arXiv 1810.13400).

# %%
import time
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from scipy.linalg import expm
from tqdm import tqdm

from mlxcone.nn import LinearMPC

OUTPUT = Path("examples/output/control.png")
HORIZON, LIMIT, STEPS, BATCH = 10, 1.0, 200, 32
COST = [4.0, 0.5]
mx.random.seed(1)
rng = np.random.default_rng(1)

# %% [markdown]
# The plant: angle and angular speed of a pendulum of 0.2 kg and 1 m, linear around upright, every
# 0.1 s; the control is a torque of up to 1 N m, enough to hold it at half a radian.

# %%
mass, length, gravity, period = 0.2, 1.0, 9.81, 0.1
continuous = np.array(
    [[0.0, 1.0, 0.0], [gravity / length, 0.0, 1.0 / (mass * length**2)], [0.0] * 3]
)
discrete = expm(continuous * period)
A_true, B_true = discrete[:2, :2], discrete[:2, 2:]


def controller():
    """The costs are known; the dynamics are what there is to learn."""
    mpc = LinearMPC(states=2, controls=1, horizon=HORIZON, limit=LIMIT)
    mpc.state_cost = mx.log(mx.array(COST))
    mpc.control_cost = mx.log(mx.array([0.1]))
    mpc.freeze(keys=["state_cost", "control_cost"])
    return mpc


expert, learner = controller(), controller()
expert.dynamics = mx.array(A_true.astype(np.float32))
expert.control = mx.array(B_true.astype(np.float32))


def ignorant(mpc):
    """A pendulum without gravity, twice as heavy."""
    mpc.dynamics = mx.array([[1.0, period], [0.0, 1.0]])
    mpc.control = mx.array([[0.0], [0.5 * period / (mass * length**2)]])
    return mpc


learner = ignorant(learner)

# %% [markdown]
# ## Training
#
# 32 states a step; the error is that of all controls of the plans.


# %%
def draw(count):
    """States in which the limit matters for some."""
    return mx.array((rng.standard_normal((count, 2)) * [0.2, 0.4]).astype(np.float32))


def imitation(model, states):
    """Mean squared difference of the plans' controls."""
    wanted = mx.stop_gradient(expert(states).controls)
    return mx.mean(mx.square(model(states).controls - wanted))


optimizer = optim.Adam(optim.cosine_decay(2e-2, STEPS))
step = nn.value_and_grad(learner, imitation)
errors = []
began = time.perf_counter()
for _ in (bar := tqdm(range(STEPS), unit="step")):
    value, gradients = step(learner, draw(BATCH))
    optimizer.update(learner, gradients)
    mx.eval(learner.state, optimizer.state)
    errors.append(value.item())
    bar.set_postfix(error=f"{errors[-1]:.1e}")
print(f"{STEPS} steps of {BATCH} plans in {time.perf_counter() - began:.1f} s")
print(f"error of the controls: {errors[0]:.1e} at first, {errors[-1]:.1e} at last")

# %% [markdown]
# ## Closed loop
#
# The pendulum is to come to rest upright, from 0.25 rad.


# %%
def drive(mpc, steps=30):
    """States and controls of the true plant."""
    state, states, controls = np.array([0.25, 0.3]), [], []
    for _ in range(steps):
        control = mpc(mx.array(state.astype(np.float32))).controls[0]
        states.append(state)
        controls.append(np.array(control))
        state = A_true @ state + B_true @ np.array(control)
    return np.stack(states), np.stack(controls)


def cost(states, controls):
    """What the controllers minimize, along the way."""
    return float(np.sum(states**2 @ COST) + 0.1 * np.sum(controls**2))


runs = {
    "expert": drive(expert),
    "learned": drive(learner),
    "before learning": drive(ignorant(controller())),
}
for name, run in runs.items():
    print(f"cost, {name}: {cost(*run):.2f}")

# %% [markdown]
# ## Check
#
# Plans of the learner against CVXPY with Clarabel, and the gradient for its dynamics against
# central differences of Clarabel's plans.


# %%
def by_clarabel(start, A, B):
    """The controls of one plan."""
    u, x = cp.Variable((HORIZON, 1)), cp.Variable((HORIZON + 1, 2))
    objective = 0.5 * cp.sum(cp.square(x[1:]) @ np.array(COST)) + 0.05 * cp.sum_squares(u)
    constraints = [x[0] == start, x[1:].T == A @ x[:-1].T + B @ u.T, cp.abs(u) <= LIMIT]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return u.value


some = draw(6)
A, B = (np.array(v).astype(float) for v in (learner.dynamics, learner.control))


def reference(A):
    """Controls of six plans."""
    return np.stack([by_clarabel(s, A, B) for s in np.array(some).astype(float)])


difference = np.abs(np.array(learner(some).controls) - reference(A)).max()
weights = rng.standard_normal((6, HORIZON, 1))


def weighted(model):
    """A number whose gradient is checked."""
    return mx.sum(mx.array(weights.astype(np.float32)) * model(some).controls)


_, gradients = nn.value_and_grad(learner, weighted)(learner)
direction = rng.standard_normal(A.shape)
ahead, behind = (np.sum(weights * reference(A + h * direction)) for h in (1e-6, -1e-6))
slope = (ahead - behind) / 2e-6
found = float(np.sum(np.array(gradients["dynamics"]) * direction))
print(f"plans: largest difference {difference:.1e}; gradient {found:.5f}, differences {slope:.5f}")
assert difference < 1e-4
assert abs(found - slope) < 1e-3 * abs(slope)
assert errors[-1] < 0.5 * errors[0]
assert cost(*runs["learned"]) < 1.01 * cost(*runs["expert"])

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
axes[0].plot(errors)
axes[0].set(xlabel="step", ylabel="error of the controls", yscale="log")
for name, (states, controls) in runs.items():
    clock = period * np.arange(len(states))
    axes[1].plot(clock, states[:, 0], label=name)
    axes[2].step(clock, controls[:, 0], where="post", label=name)
axes[1].set(xlabel="s", ylabel="angle, rad", ylim=(-0.3, 0.5))
axes[2].set(xlabel="s", ylabel="torque, N m")
axes[1].legend(frameon=False)
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
