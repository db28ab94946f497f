# %% [markdown]
# # Data-parallel training
#
# Run with `mlx.launch -n 2 python examples/data_parallel.py`. Every process draws data of its own,
# trains the same model through a convex layer, and gradients are averaged at each step. At the end
# one batch is shared out over the processes (`mlxcone.distributed`) and compared with what one
# process finds.

# %%
import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

import mlxcone
import mlxcone.nn as cones

STEPS, BATCH, SIZE, CHOSEN = 40, 64, 16, 4
group = mx.distributed.init()
rank, size = group.rank(), group.size()
mx.random.seed(0)  # the same model everywhere
rng = np.random.default_rng(rank)  # other data in each
truth = np.random.default_rng(99).standard_normal((8, SIZE))


def draw(count):
    """Features, and which four of sixteen scores are the largest."""
    x = rng.standard_normal((count, 8))
    scores = x @ truth
    chosen = scores >= np.sort(scores, axis=1)[:, -CHOSEN][:, None]
    return mx.array(x.astype(np.float32)), mx.array(chosen.astype(np.float32))


class Chooser(nn.Module):
    """Scores, then a choice of four that has a gradient."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(8, SIZE)
        self.choice = cones.SoftTopK(SIZE, CHOSEN, temperature=2.0)

    def __call__(self, x):
        return self.choice(self.scores(x))


model, optimizer = Chooser(), optim.Adam(3e-2)
step = nn.value_and_grad(model, lambda x, wanted: mx.mean(mx.square(model(x) - wanted)))
losses = []
began = time.perf_counter()
for k in range(STEPS):
    loss, gradients = step(*draw(BATCH))
    gradients = nn.average_gradients(gradients, group)
    optimizer.update(model, gradients)
    mx.eval(model.state, optimizer.state)
    losses.append(mx.distributed.all_sum(loss, group=group).item() / size)
    if rank == 0 and k % 10 == 0:
        print(f"step {k:3d}   error {losses[-1]:.4f}", flush=True)
rate = STEPS * BATCH * size / (time.perf_counter() - began)
if rank == 0:
    print(f"{size} processes: {rate:.0f} programs a second, error {losses[-1]:.4f}", flush=True)
assert losses[-1] < 0.5 * losses[0]

# %% [markdown]
# ## One batch over all processes

# %%
random = np.random.default_rng(7)  # the same everywhere
A = np.vstack([np.ones((1, SIZE)), -np.eye(SIZE)])
b = np.concatenate([[1.0], np.zeros(SIZE)])
q = random.standard_normal((101, SIZE))
cone = {"z": 1, "l": SIZE}
shared = mlxcone.distributed.solve(np.eye(SIZE), q, A, b, cone)
alone = mlxcone.solve(np.eye(SIZE), q, A, b, cone)
difference = mx.max(mx.abs(shared.x - alone.x), stream=mx.cpu).item()
if rank == 0:
    print(f"101 programs over {size} processes: largest difference {difference:.1e}", flush=True)
assert difference < 1e-8
