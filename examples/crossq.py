"""A small CrossQ: batch renormalisation replaces target networks. The agent steers a cart to position 0.

A critic gets this step's and the next step's actions in one batch, so that both are normalised alike. The first updates
are plain batch norm; after the warm-up the layers normalise nearly as in evaluation. The checkpoint contains the
counter of the warm-up. Source: Bhatt et al. 2024, arXiv 1902.05605.
"""

import io

import torch
from torch import Tensor, nn

import batchnorm as bn

torch.manual_seed(0)
torch.set_num_threads(1)
CARTS, LENGTH, UPDATES, WARMUP, DISCOUNT, ENTROPY = 16, 30, 400, 100, 0.95, 0.02


def norm(width: int) -> nn.Module:
    renorm = bn.Renorm(r_max=3, d_max=5, warmup=WARMUP, gradual=False)
    return bn.BatchNorm1d(width, eps=1e-3, momentum=0.01, renorm=renorm)


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        norm(inputs), nn.Linear(inputs, 64), nn.ReLU(), norm(64), nn.Linear(64, 64), nn.ReLU(), norm(64),
        nn.Linear(64, outputs),
    )  # fmt: skip


def start(carts: int) -> Tensor:
    """Position and speed of each cart."""
    return torch.stack([torch.rand(carts) * 2 - 1, torch.zeros(carts)], 1)


def step(state: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """The next states and the rewards."""
    speed = state[:, 1] + 0.2 * force[:, 0]
    state = torch.stack([state[:, 0] + 0.2 * speed, speed], 1)
    return state, -state[:, 0].square() - 0.1 * state[:, 1].square() - 0.01 * force[:, 0].square()


def act(actor: nn.Module, state: Tensor) -> tuple[Tensor, Tensor]:
    """Forces in [−1, 1] and their log-probabilities."""
    mean, log_std = actor(state).chunk(2, 1)
    noise = torch.distributions.Normal(mean, log_std.clamp(-4, 1).exp())
    raw = noise.rsample()
    force = raw.tanh()
    return force, noise.log_prob(raw) - (1 - force.square() + 1e-6).log()


@torch.no_grad()
def score(actor: nn.Module | None, carts: int = 200) -> float:
    """The mean return of an episode; without an actor, of random forces."""
    state, total = start(carts), torch.zeros(carts)
    for _ in range(LENGTH):
        force = torch.rand(carts, 1) * 2 - 1 if actor is None else actor(state).chunk(2, 1)[0].tanh()
        state, reward = step(state, force)
        total += reward
    return total.mean().item()


actor, critics = network(2, 2), nn.ModuleList([network(3, 1), network(3, 1)])
optimizers = [torch.optim.Adam(m.parameters(), 1e-3, betas=(0.5, 0.999)) for m in (actor, critics)]
seen: list[tuple[Tensor, ...]] = []
state = start(CARTS)
for update in range(UPDATES):
    actor.eval()
    with torch.no_grad():
        force = act(actor, state)[0]
    after, reward = step(state, force)
    seen.append((state, force, reward.unsqueeze(1), after))
    state = after if (update + 1) % LENGTH else start(CARTS)

    rows = torch.randint(len(seen), (16,))
    s, a, r, s2 = (torch.cat([seen[i][part] for i in rows.tolist()]) for part in range(4))
    with torch.no_grad():
        a2, log_prob = act(actor, s2)
    critics.train()  # one batch of both: one update of the running statistics
    both = torch.cat([torch.cat([s, s2]), torch.cat([a, a2])], 1)
    now, then = zip(*(critic(both).chunk(2) for critic in critics), strict=True)
    target = r + DISCOUNT * (torch.minimum(*then) - ENTROPY * log_prob).detach()
    optimizers[1].zero_grad()
    sum((q - target).square().mean() for q in now).backward()
    optimizers[1].step()

    if update % 2 == 0:
        actor.train()
        critics.eval()  # normalised by the running statistics, which are not updated
        force, log_prob = act(actor, s)
        value = torch.minimum(*(critic(torch.cat([s, force], 1)) for critic in critics))
        optimizers[0].zero_grad()
        (ENTROPY * log_prob - value).mean().backward()
        optimizers[0].step()

learned, chance = score(actor.eval()), score(None)
print(f"return of an episode: {learned:.1f} after {UPDATES} updates, {chance:.1f} by chance")
assert learned > 0.5 * chance, "the cart did not get to position 0"

file = io.BytesIO()
torch.save(critics.state_dict(), file)
file.seek(0)
again = nn.ModuleList([network(3, 1), network(3, 1)])
again.load_state_dict(torch.load(file, weights_only=True))
counted = again[0][0].num_batches_tracked
print(f"the checkpoint continues at update {counted}, after the warm-up of {WARMUP}")
batch = torch.cat([s, a], 1)
assert counted == UPDATES
assert torch.equal(again.train()[0](batch), critics.train()[0](batch))
