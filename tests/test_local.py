"""One client's training and evaluation against plain PyTorch and arithmetic."""

import copy
import functools
import math
import random
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedresearch.local.metrics import accuracy
from fedresearch.local.objective import evaluate, mean_gradient, mean_loss
from fedresearch.local.train import LocalTrainer, LocalWork, Task, bare_step, drift
from fedresearch.local.update import End, LocalUpdate


def samples(n, generator):
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01}),
        (torch.optim.Adagrad, {"lr": 0.1}),
    ],
)
def test_training_is_the_plain_loop_bit_for_bit(optimizer, options):
    generator = torch.Generator().manual_seed(0)
    x, y = samples(23, generator)
    ours, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(ours.state_dict())

    update, lr = LocalUpdate(), options.pop("lr")
    task = Task(plain.state_dict(), x, y, update, update.stages(ours), {"lr": lr}, seed_of=lambda _: 1)
    work = LocalWork(epochs=3, steps=None, batch_size=5)
    train = LocalTrainer(ours, functools.partial(optimizer, **options), work)
    train(task._replace(seed_of=lambda _: 2))  # leaves nothing for the next client
    trained = train(task)

    order = torch.Generator().manual_seed(1)
    stepper = optimizer(plain.parameters(), lr=lr, **options)
    losses = []
    for _ in range(3):
        for batch in torch.randperm(23, generator=order).split(5):
            stepper.zero_grad()
            batch_loss = F.cross_entropy(plain(x[batch]), y[batch])
            batch_loss.backward()
            stepper.step()
            losses.append(batch_loss.item())
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)
    assert trained.num_steps == len(losses) == 15
    assert trained.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)  # float32, summed in another order


def test_an_optimizers_own_step_and_its_hooks_are_called():
    """Whatever is around torch's step and is not torch's own."""
    weight = nn.Parameter(torch.ones(1))
    called = []

    class Halving(torch.optim.SGD):
        @functools.wraps(torch.optim.SGD.step)
        def step(self, closure=None):
            called.append("own")
            self.param_groups[0]["params"][0].grad *= 0.5
            return super().step(closure)

    hooked = torch.optim.SGD([weight], lr=1.0)
    hooked.register_step_post_hook(lambda *_: called.append("hook"))
    replaced = torch.optim.SGD([weight], lr=1.0)
    replaced.step = lambda: called.append("replaced")
    for optimizer, expected in ((Halving([weight], lr=1.0), 0.5), (hooked, -0.5), (replaced, -0.5)):
        weight.grad = torch.ones(1)
        with torch.no_grad():
            bare_step(optimizer)()
        assert weight.item() == expected
    assert called == ["own", "hook", "replaced"]


def test_what_an_update_draws_from_the_global_generators_is_a_function_of_the_clients_seed():
    """Also at the end of its round, whatever drew before in this process, which differs on workers."""

    class Drawing(LocalUpdate):
        def end(self, params, fixed, drift):
            return End(metrics={"drawn": torch.rand(()), "python": random.random(), "numpy": np.random.rand()})

    model, update = nn.Linear(4, 3), Drawing()
    x, y = samples(5, torch.Generator().manual_seed(0))
    task = Task(copy.deepcopy(model.state_dict()), x, y, update, update.stages(model), {"lr": 0.1}, lambda _: 3)
    train = LocalTrainer(model, torch.optim.SGD, LocalWork(1, None, 2))
    first = train(task).end.metrics
    torch.rand(1)
    assert train(task).end.metrics == first


def test_a_state_dict_of_other_shapes_is_refused_and_not_spread():
    model = nn.Linear(4, 3)
    x, y = samples(5, torch.Generator().manual_seed(0))
    task = Task(
        {"weight": torch.zeros(1, 4), "bias": torch.zeros(3)}, x, y, LocalUpdate(), (), {"lr": 0.1}, lambda _: 0
    )
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        LocalTrainer(model, torch.optim.SGD, LocalWork(1, None, 5))(task)


@given(n=st.integers(1, 30), batch_size=st.integers(0, 40), epochs=st.integers(1, 3))
def test_an_epoch_is_a_pass_over_the_data(n, batch_size, epochs):
    x = torch.arange(n)
    batches = [b.tolist() for b, _ in LocalWork(epochs, None, batch_size).batches(x, x, torch.Generator())]
    size = batch_size or n
    assert len(batches) == epochs * math.ceil(n / size)
    for epoch in range(epochs):
        of_epoch = batches[epoch * math.ceil(n / size) : (epoch + 1) * math.ceil(n / size)]
        assert sorted(chain.from_iterable(of_epoch)) == list(range(n))
        assert all(len(batch) == min(size, n) for batch in of_epoch[:-1])


@given(n=st.integers(1, 30), batch_size=st.integers(0, 40), steps=st.integers(1, 20))
def test_steps_are_as_many_as_asked(n, batch_size, steps):
    x = torch.arange(n)
    batches = [b.tolist() for b, _ in LocalWork(None, steps, batch_size).batches(x, x, torch.Generator())]
    assert len(batches) == steps
    per_epoch = math.ceil(n / (batch_size or n))
    for start in range(0, steps - per_epoch + 1, per_epoch):
        assert sorted(chain.from_iterable(batches[start : start + per_epoch])) == list(range(n))


def test_steps_are_the_first_of_the_epochs():
    x = torch.arange(23)

    def batches(work):
        return [b.tolist() for b, _ in work.batches(x, x, torch.Generator().manual_seed(3))]

    assert batches(LocalWork(None, 7, 5)) == batches(LocalWork(2, None, 5))[:7]


def test_evaluation_of_classes():
    """Logits (0, ln 3): the second class has probability 3/4. Targets 1, 1, 1, 0."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, math.log(3)]))
    metrics = {"accuracy": accuracy, "counts": lambda outputs, targets: [len(outputs), len(targets)]}
    measured = evaluate(model, torch.zeros(4, 1), torch.tensor([1, 1, 1, 0]), metrics=metrics)
    loss = pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4, abs=1e-6)
    assert measured == {"loss": loss, "accuracy": 0.75, "counts/0": 4, "counts/1": 4}
    assert not model.training


def test_evaluation_of_a_regression_over_several_batches():
    """Outputs 0, targets 0, 1, ..., n - 1: the mean of the squares is (n - 1)(2n - 1) / 6."""
    n = 2500
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    targets = torch.arange(n, dtype=torch.float64)[:, None]
    metrics = {"square": lambda outputs, targets: (outputs - targets).square().mean()}
    measured = evaluate(model, torch.zeros(n, 1, dtype=torch.float64), targets, metrics=metrics)
    assert measured == dict.fromkeys(("loss", "square"), pytest.approx((n - 1) * (2 * n - 1) / 6))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("options", "mu", "expected"),
    [
        ({}, 0.0, 0.1 * 7),
        ({"momentum": 0.9}, 0.0, 0.1 * sum((1 - 0.9**k) / (1 - 0.9) for k in range(1, 8))),
        ({}, 0.5, (1 - (1 - 0.1 * 0.5) ** 7) / 0.5),
    ],
    ids=["plain", "momentum", "proximal"],
)
def test_what_the_gradients_of_seven_steps_weigh(options, mu, expected, weight_decay):
    """Wang et al. 2020, arXiv:2007.07481: |a|_1 for SGD, with momentum and with a proximal term, times eta = 0.1."""
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, weight_decay=weight_decay, **options)
    assert drift(optimizer, 7, mu) == pytest.approx(expected, rel=1e-12)


def test_the_mean_gradient_over_more_samples_than_one_pass_takes():
    generator = torch.Generator().manual_seed(0)
    x, y = samples(2500, generator)
    model = nn.Linear(4, 3).double()
    at = {name: torch.randn(p.shape, generator=generator).double() for name, p in model.named_parameters()}
    logits = (x.double() @ at["weight"].T + at["bias"]).softmax(1)
    residual = logits - F.one_hot(y, 3)
    gradient = mean_gradient(model, at, x.double(), y)
    torch.testing.assert_close(gradient["weight"], residual.T @ x.double() / 2500, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient["bias"], residual.mean(0), rtol=0, atol=1e-12)


def test_the_mean_gradient_leaves_the_running_statistics_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x, y = samples(8, torch.Generator().manual_seed(0))
    mean_gradient(model, dict(model.named_parameters()), x, y)
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert model[1].num_batches_tracked == 0


def test_the_mean_loss_is_an_evaluations_at_any_parameters():
    """More samples than one pass takes; neither dropout nor the batches' own statistics count, and nothing moves."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    model[0].running_mean += 1
    x, y = samples(2500, torch.Generator().manual_seed(0))
    at = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    hidden = (x.double() - 1) / (1 + model[0].eps) ** 0.5 * at["0.weight"] + at["0.bias"]
    expected = F.cross_entropy(hidden @ at["2.weight"].T + at["2.bias"], y)
    loss = mean_loss(model, at, x.double(), y)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_steps_that_cancel_out_are_refused():
    """With lr 1 and mu 2 each displacement is taken back: 1, 0, 1, 0, ..."""
    with pytest.raises(ValueError, match=r"lr \* mu must be below 1, or the local steps cancel out, got mu=2"):
        drift(functools.partial(torch.optim.SGD, lr=1.0), 2, 2.0)
