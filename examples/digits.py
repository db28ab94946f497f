# %% [markdown]
# # Digits through a quadratic program
#
# A classifier of scikit-learn's digits whose hidden layer is a quadratic program with learnable
# matrices, as in OptNet (Amos and Kolter 2017, arXiv 1703.00443). Every step solves a batch of 64
# programs and differentiates through them.

# %%
import time
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import mlxcone
import mlxcone.nn as cones

OUTPUT = Path("examples/output/digits.png")
EPOCHS, BATCH, HIDDEN, INEQUALITIES = 6, 64, 16, 20
mx.random.seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# 1,797 images of 8 x 8 pixels; a quarter of them is kept for the test.

# %%
images, digits = load_digits(return_X_y=True)
split = train_test_split(images / 16.0, digits, test_size=0.25, random_state=0)
x_train, x_test = (mx.array(v.astype(np.float32)) for v in split[:2])
y_train, y_test = (mx.array(v.astype(np.int32)) for v in split[2:])


class Classifier(nn.Module):
    """Linear, quadratic program, linear."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, HIDDEN)
        self.program = cones.QuadraticProgram(HIDDEN, INEQUALITIES, curvature=0.1)
        self.outer = nn.Linear(HIDDEN, 10)

    def __call__(self, x):
        return self.outer(self.program(3.0 * self.inner(x)))


def loss(model, x, y):
    """Cross entropy."""
    return nn.losses.cross_entropy(model(x), y, reduction="mean")


def accuracy(model, x, y):
    """Share of right answers."""
    return mx.mean(mx.argmax(model(x), axis=1) == y).item()


# %% [markdown]
# ## Training

# %%
model, optimizer = Classifier(), optim.Adam(5e-3)
step = nn.value_and_grad(model, loss)
losses, accuracies = [], []
began = time.perf_counter()
bar = tqdm(total=EPOCHS * (len(y_train) // BATCH), unit="step")
for _ in range(EPOCHS):
    order = rng.permutation(len(y_train))
    for begin in range(0, len(order) - BATCH + 1, BATCH):
        chosen = mx.array(order[begin : begin + BATCH])
        value, gradients = step(model, x_train[chosen], y_train[chosen])
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
        losses.append(value.item())
        bar.update()
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    accuracies.append(accuracy(model, x_test, y_test))
bar.close()
seconds = time.perf_counter() - began
print(f"{BATCH * len(losses) / seconds:.0f} programs a second, solved and differentiated")
print(f"test accuracy after each epoch: {[round(a, 3) for a in accuracies]}")

# %% [markdown]
# ## Check
#
# The hidden layer's answers against CVXPY with Clarabel, for eight images; and the gradient of the
# loss for a row of G against central differences of the same, solved by Clarabel.


# %%
def by_clarabel(p, G, level, P):
    """One program, in float64."""
    z = cp.Variable(len(p))
    objective = cp.Minimize(0.5 * cp.quad_form(z, cp.psd_wrap(P)) + p @ z)
    problem = cp.Problem(objective, [G @ z <= level])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return z.value


some, inner = x_test[:8], model.inner(x_test[:8]) * 3.0
program = model.program
L, G, z0, s0 = (
    np.array(program[k]).astype(float) for k in ("factor", "inequality", "interior", "slack")
)
P = np.tril(L) @ np.tril(L).T + 0.1 * np.eye(HIDDEN)


def reference(G):
    """Answers for the eight images."""
    return np.stack([by_clarabel(p, G, G @ z0 + np.exp(s0), P) for p in np.array(inner)])


error = np.abs(np.array(program(inner)) - reference(G)).max()


def total(G):
    """Of the squared answers, through the layer."""
    level = G @ program.interior + mx.exp(program.slack)
    cone = {"l": INEQUALITIES}
    x = mlxcone.solve(mx.array(P.astype(np.float32)), inner, G, level, cone).x
    return mx.sum(mx.square(x))


gradient = np.array(mx.grad(total)(program.inequality))
direction = rng.standard_normal(G.shape)
ahead, behind = (np.sum(reference(G + h * direction) ** 2) for h in (1e-5, -1e-5))
slope = (ahead - behind) / 2e-5
mismatch = abs(np.sum(gradient * direction) - slope) / abs(slope)
print(f"answers: largest difference {error:.1e}; gradient: relative difference {mismatch:.1e}")
assert error < 1e-4
assert mismatch < 1e-3
assert accuracies[-1] > 0.9

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
axes[0].plot(losses)
axes[0].set(xlabel="step", ylabel="cross entropy", yscale="log")
axes[1].plot(range(1, EPOCHS + 1), accuracies, marker="o")
axes[1].set(xlabel="epoch", ylabel="accuracy on the test images", ylim=(0.5, 1.0))
OUTPUT.parent.mkdir(exist_ok=True, parents=True)
figure.savefig(OUTPUT, dpi=120)
print(f"picture in {OUTPUT}")
