"""The compiled kernel of chains of layers against a plain loop of PyTorch in double precision."""

import functools
import itertools
import math
import os
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedresearch.local import dense
from fedresearch.local.dense import Adam, Chain, Conv, DenseKernel, KernelUnavailable, Sgd, chain_of, optimizer_of
from fedresearch.local.train import LocalTrainer, LocalWork, Task
from fedresearch.local.update import LocalUpdate, Term
from fedresearch.models.cnn_mcmahan import McMahanCNN
from fedresearch.models.lenet import LeNet
from fedresearch.models.logistic import Logistic
from fedresearch.models.mlp import MLP
from tests import warm

SIZES = np.array([7, 1, 23, 130, 10])
WORK, SGD = LocalWork(2, None, 5), Sgd(0.1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """PyTorch's threads wait for one another longer than these small models take."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a folder that the processes of the suite share, so that the kernel is compiled once."""
    return tmp_path_factory.getbasetemp().parent / "kernel"


class Cohort:
    """Clients of several sizes and a model; ``train`` calls the kernel and ``expected`` the loop."""

    def __init__(self, *widths, convs=(), squared_error=False, sizes=SIZES):
        rng = np.random.default_rng(len(widths))
        self.model, self.squared_error = Chain(convs, widths), squared_error
        num = sizes.sum() + 3  # the first rows are nobody's
        self.sizes, self.starts = sizes, 3 + np.cumsum(sizes) - sizes
        self.x = rng.normal(size=(num, self.model.num_inputs)).astype(np.float32)
        self.y = rng.integers(widths[-1], size=num)
        if squared_error:
            self.y = rng.normal(size=(num, widths[-1])).astype(np.float32)
        self.seeds = rng.integers(2**63, size=len(sizes), dtype=np.uint64)
        self.params = np.concatenate(
            [rng.normal(size=math.prod(shape) + n) / math.sqrt(math.prod(shape[1:]) + 1) for shape, n in self.layers()]
        ).astype(np.float32)
        self.rng = rng

    def layers(self):
        """Return each layer's shape of weights and number of biases."""
        for conv in self.model.convs:
            yield (conv.out_channels, conv.in_channels, conv.kernel_height, conv.kernel_width), conv.out_channels
        for num_in, num_out in itertools.pairwise(self.model.widths):
            yield (num_out, num_in), num_out

    def vectors(self, *shape):
        return self.rng.normal(size=(*shape, len(self.params))).astype(np.float32) / 10

    def train(self, cache, work=WORK, optimizer=SGD, threads=1, members=slice(None), **options):
        kernel = DenseKernel(self.model, self.squared_error, threads, cache)
        sizes, starts, seeds = (values[members] for values in (self.sizes, self.starts, self.seeds))
        out = np.full((len(sizes), len(self.params)), np.nan, np.float32)
        where = {"x": self.x, "y": self.y, "starts": starts, "sizes": sizes, "seeds": seeds, "params": self.params}
        losses, steps = kernel(**(where | options), work=work, optimizer=optimizer, out=out)
        return out, losses, steps

    def expected(
        self,
        work=WORK,
        optimizer=SGD,
        shares=None,
        params=None,
        shift=None,
        mu=0.0,
        anchor=None,
        x=None,
        scale=1,
        offset=0,
    ):
        found = []
        x = (self.x if x is None else x) * np.float64(scale) + np.float64(offset)
        x = torch.from_numpy(x)
        for i, (start, size, seed) in enumerate(zip(self.starts, self.sizes, self.seeds, strict=True)):
            w = torch.from_numpy(self._row(self.params if params is None else params, i)).double().requires_grad_()
            origin = w.detach().clone() if anchor is None else torch.from_numpy(anchor).double()
            added = 0.0 if shift is None else torch.from_numpy(self._row(shift, i)).double()
            steps = optimizer.make([w])
            rows = torch.arange(size) + start
            batch = work.batch_size or int(size)
            generator = torch.Generator().manual_seed(int(seed))
            losses = []
            for order in work.orders(int(size), generator, 1.0 if shares is None else shares[i]):
                for own in rows[order].split(batch):
                    steps.zero_grad()
                    loss = self._loss(w, x[own], torch.from_numpy(self.y)[own])
                    loss.backward()
                    w.grad += added + mu * (w.detach() - origin)
                    steps.step()
                    losses.append(loss.item())
            found.append((w.detach().numpy(), np.mean(losses), len(losses)))
        return tuple(np.array(values) for values in zip(*found, strict=True))

    def _row(self, vectors, i):
        return vectors if vectors.ndim == 1 else vectors[i]

    def _loss(self, w, h, y):
        pieces = iter(w.split([size for shape, num in self.layers() for size in (math.prod(shape), num)]))
        for place, (shape, _) in enumerate(self.layers()):
            weight, bias = next(pieces).view(shape), next(pieces)
            if len(shape) == 4:
                conv = self.model.convs[place]
                h = h.view(-1, conv.in_channels, conv.height, conv.width)
                h = F.conv2d(h, weight, bias, padding=(conv.pad_height, conv.pad_width)).relu()
                h = F.max_pool2d(h, conv.pool).flatten(1)
            else:
                h = F.linear(h.relu() if place > len(self.model.convs) else h, weight, bias)
        return (h - y).square().mean() if self.squared_error else F.cross_entropy(h, y)


def check(cohort, cache, **options):
    got, expected = cohort.train(cache, **options), cohort.expected(**options)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


WIDTHS = [(60, 10), (64, 200, 10), (5, 33, 17, 3), (4, 1, 2), (16, 16, 16, 16), (1, 2)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("batch_size", [0, 1, 5, 10, 100, 1000])
def test_the_kernel_trains_what_the_loop_trains(cache, widths, batch_size):
    check(Cohort(*widths), cache, work=LocalWork(2, None, batch_size))


CONVS = {
    "one": ([Conv(1, 5, 6, 2, 3, 2, 0, 0, 1)], [30, 3]),
    "padded": ([Conv(2, 7, 5, 3, 3, 3, 1, 1, 2), Conv(3, 3, 2, 17, 2, 1, 1, 2, 1)], [17 * 4 * 6, 4]),
    "wide": ([Conv(1, 9, 40, 5, 2, 5, 0, 0, 2), Conv(5, 4, 18, 1, 1, 1, 0, 0, 3)], [6, 20, 3]),
    "pixels": ([Conv(3, 2, 2, 4, 1, 1, 0, 0, 1), Conv(4, 2, 2, 2, 2, 2, 1, 1, 3)], [2, 2]),
}


@pytest.fixture(params=CONVS)
def convolutions(request):
    convs, widths = CONVS[request.param]
    return Cohort(*widths, convs=tuple(convs))


@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_convolutions(cache, convolutions, batch_size):
    """The client of 130 samples has batches of more than are computed together."""
    check(convolutions, cache, work=LocalWork(2, None, batch_size))


def test_convolutions_with_terms_of_bytes(cache, convolutions):
    cohort = convolutions
    x = cohort.rng.integers(256, size=cohort.x.shape, dtype=np.uint8)
    scale, offset = (cohort.rng.uniform(size=x.shape[1]).astype(np.float32) for _ in range(2))
    terms = {"mu": 0.5, "shift": cohort.vectors(len(SIZES)), "params": cohort.params + cohort.vectors(len(SIZES))}
    check(cohort, cache, x=x, scale=scale / 255, offset=offset, **terms, optimizer=Sgd(0.05, 0.9, 0.0, 0.1, True))


def test_of_equal_pixels_the_first_is_pooled(cache):
    """As in PyTorch: where the images are constant, gradients of the layers before depend on it."""
    cohort = Cohort(4, 3, convs=(Conv(1, 8, 8, 2, 3, 3, 1, 1, 2), Conv(2, 4, 4, 1, 3, 3, 1, 1, 2)))
    cohort.x[:] = np.round(cohort.x)  # few values, and zeros around the images
    check(cohort, cache)


@pytest.mark.parametrize("widths", [(10, 1), (3, 20, 1), (3, 17)], ids=str)
@pytest.mark.parametrize("batch_size", [0, 5])
def test_regression(cache, widths, batch_size):
    check(Cohort(*widths, squared_error=True), cache, work=LocalWork(3, None, batch_size))


@pytest.mark.parametrize(
    "optimizer",
    [
        Sgd(0.1, 0.9),
        Sgd(0.1, 0.9, dampening=0.3),
        Sgd(0.1, 0.9, nesterov=True),
        Sgd(0.1, weight_decay=0.1),
        Sgd(0.05, 0.5, 0.2, 0.1),
        Adam(0.01),
        Adam(0.01, 0.5, 0.9, 1e-3, 0.1),
        Adam(0.01, weight_decay=0.1, decoupled=True),
    ],
)
@pytest.mark.parametrize("batch_size", [5, 0])
def test_the_optimizer(cache, optimizer, batch_size):
    check(Cohort(6, 20, 5), cache, optimizer=optimizer, work=LocalWork(3, None, batch_size))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("batch_size", [5, 0])
def test_the_terms(cache, own, batch_size):
    cohort = Cohort(6, 20, 5)
    vectors = functools.partial(cohort.vectors, *[len(SIZES)] * own)
    work = LocalWork(3, None, batch_size)
    check(cohort, cache, shift=vectors(), work=work)
    check(cohort, cache, mu=0.5, params=cohort.params + vectors(), work=work)
    terms = {"mu": 0.5, "shift": vectors(), "params": cohort.params + vectors(), "anchor": cohort.params}
    check(cohort, cache, **terms, optimizer=Sgd(0.1, 0.9, 0.0, 0.1, True), work=work)


@pytest.mark.parametrize(
    "work",
    [WORK, LocalWork(None, 7, 5), LocalWork(None, 1, 0), LocalWork(1, None, 7), LocalWork(None, 40, 10)],
    ids=str,
)
def test_shares_of_the_work(cache, work):
    shares = np.array([1.0, 0.01, 1 / 3, 0.5, 0.25])
    check(Cohort(6, 5), cache, work=work, shares=shares)


def test_bytes_are_scaled_in_the_kernel(cache):
    cohort = Cohort(20, 5)
    x = cohort.rng.integers(256, size=cohort.x.shape, dtype=np.uint8)
    scale, offset = (cohort.rng.uniform(size=20).astype(np.float32) for _ in range(2))
    check(cohort, cache, x=x, scale=scale / 255, offset=offset)
    check(cohort, cache, scale=scale, offset=offset)
    check(cohort, cache, x=x, optimizer=Sgd(1e-4))


@pytest.mark.parametrize(
    "layers", [((), (60, 10)), ((), (64, 200, 10)), ((), (5, 33, 17, 3)), CONVS["padded"]], ids=str
)
@pytest.mark.parametrize("optimizer", [Sgd(0.1), Sgd(0.1, 0.9)])
def test_bits_do_not_depend_on_threads_or_on_other_clients(cache, monkeypatch, layers, optimizer):
    monkeypatch.setattr(dense, "_NUMBERS_A_THREAD", 1)  # so that little work is shared too
    sizes = np.array([7, 1, 23, 130, 10] * 4)
    cohort = Cohort(*layers[1], convs=tuple(layers[0]), sizes=sizes)
    whole = cohort.train(cache, optimizer=optimizer)
    for threads in (2, 3, 64):
        for one, other in zip(whole, cohort.train(cache, optimizer=optimizer, threads=threads), strict=True):
            np.testing.assert_array_equal(one, other)
    for members in (cohort.rng.permutation(20), [3, 7], [4], []):
        for one, other in zip(whole, cohort.train(cache, optimizer=optimizer, threads=2, members=members), strict=True):
            np.testing.assert_array_equal(one[members], other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layers", [((), (4, 3)), ((), (4, 20, 3)), CONVS["padded"], CONVS["wide"]], ids=str)
@pytest.mark.parametrize("squared_error", [False, True])
def test_what_is_not_finite_stays_with_its_client(cache, value, layers, squared_error):
    cohort = Cohort(*layers[1], convs=tuple(layers[0]), squared_error=squared_error)
    plain, losses, _ = cohort.train(cache)
    cohort.x[cohort.starts[2], 1] = value
    out, new, _ = cohort.train(cache)
    others = [0, 1, 3, 4]
    assert not np.isfinite(out[2]).all()
    np.testing.assert_array_equal(out[others], plain[others])
    np.testing.assert_array_equal(new[others], losses[others])
    assert math.isnan(new[2]) or not squared_error


def test_confident_models_have_finite_losses(cache):
    cohort = Cohort(4, 3)
    cohort.params *= 1000
    check(cohort, cache, optimizer=Sgd(1.0))


@pytest.mark.parametrize("label", [-100, -1, 3, 2**40])
def test_a_label_that_is_no_class(cache, label):
    cohort = Cohort(4, 3)
    cohort.y[cohort.starts[3] + 5] = label
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        cohort.train(cache, threads=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"x": np.zeros((174, 4))}, r"x must be float32 \(174, 4\), got float64 \(174, 4\)"),
        ({"x": np.zeros((174, 3), np.float32)}, r"x must be float32 \(174, 4\), got float32 \(174, 3\)"),
        ({"y": np.zeros((174, 3), np.float32)}, r"y must be int64 \(174,\), got float32 \(174, 3\)"),
        ({"starts": np.array([-1, 0, 0, 0, 0])}, "each client must have 1 to 214748363 of the 174 rows of x"),
        ({"sizes": np.array([0, 1, 1, 1, 1])}, "each client must have 1 to 214748363 of the 174 rows of x"),
        ({"sizes": np.array([172, 1, 1, 1, 1])}, "each client must have 1 to 214748363 of the 174 rows of x"),
        ({"scale": np.ones(4, np.float32)}, r"offset must be float32 \(4,\), got object \(\)"),
        ({"shift": np.ones((2, 15), np.float32)}, r"shift must be float32 \(15,\) or \(5, 15\), got float32 \(2, 15\)"),
    ],
)
def test_wrong_arrays(cache, options, said):
    with pytest.raises(ValueError, match=said):
        Cohort(4, 3).train(cache, **options)


def test_out_must_be_contiguous(cache):
    cohort = Cohort(4, 3)
    kernel = DenseKernel(Chain((), (4, 3)), False, 1, cache)
    names = ("x", "y", "starts", "sizes", "seeds", "params")
    out = np.empty((15, 5), np.float32).T
    with pytest.raises(ValueError, match="out must be contiguous"):
        kernel(**{name: getattr(cohort, name) for name in names}, work=WORK, optimizer=Sgd(0.1), out=out)


def test_the_kernel_takes_tensors_and_trains_as_the_local_trainer_does(cache):
    """Its loss too is that of ``Trained``."""
    model = MLP((2, 3), 4, widths=[20])
    x, y = torch.randn(23, 2, 3), torch.randint(4, (23,))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = torch.empty(1, sum(tensor.numel() for tensor in start.values()))
    losses, steps = DenseKernel(chain_of(model, (2, 3)), False, 1, cache)(
        x=x.flatten(1),
        y=y,
        starts=torch.zeros(1, dtype=torch.int64),
        sizes=torch.tensor([23]),
        seeds=np.array([5], np.uint64),
        work=WORK,
        params=torch.cat([tensor.flatten() for tensor in start.values()]),
        optimizer=Sgd(0.1),
        out=out,
    )
    update = LocalUpdate()
    task = Task(start, x, y, update, update.stages(model), {"lr": 0.1}, lambda _: 5)
    trained = LocalTrainer(model, torch.optim.SGD, WORK)(task)
    assert steps.tolist() == [trained.num_steps]
    assert losses[0] == pytest.approx(trained.loss, rel=1e-6)
    expected = torch.cat([tensor.flatten() for tensor in trained.state.values()])
    torch.testing.assert_close(out[0], expected, rtol=1e-5, atol=1e-6)


class Functional(nn.Module):
    """A chain, or what ``last`` makes of it."""

    def __init__(self, last=lambda x, h: h):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 2), last

    def forward(self, x):
        x = torch.flatten(x, start_dim=1)
        return self.last(x, self.second(F.relu(self.first(x))))


def linear_with(change):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    change(model)
    return model


def test_chains():
    assert chain_of(Logistic((2, 3), 4), (2, 3)) == ((), (6, 4))
    assert chain_of(MLP((6,), 4, widths=[]), (6,)) == ((), (6, 4))
    assert chain_of(MLP((2, 3), 4, widths=[200, 100]), (2, 3)) == ((), (6, 200, 100, 4))
    assert chain_of(Functional(), (6,)) == ((), (6, 5, 2))
    assert chain_of(linear_with(lambda model: None), (3,)) == ((), (3, 3, 3))
    lenet = Conv(3, 32, 32, 6, 5, 5, 0, 0, 2), Conv(6, 14, 14, 16, 5, 5, 0, 0, 2)
    assert chain_of(LeNet((3, 32, 32), 10), (3, 32, 32)) == (lenet, (400, 120, 84, 10))
    assert chain_of(McMahanCNN((1, 28, 28), 10), (1, 28, 28)).num_params == 1_663_370  # as the paper has
    flat = nn.Flatten(), nn.Linear(12, 2)
    conv = nn.Conv2d(1, 3, (3, 1), padding=(1, 0))
    for middle in ((nn.ReLU(), nn.MaxPool2d((2, 2), 2)), (nn.MaxPool2d(2), nn.ReLU())):
        assert chain_of(nn.Sequential(conv, *middle, *flat), (1, 4, 4)) == ((Conv(1, 4, 4, 3, 3, 1, 1, 0, 2),), (12, 2))
    unpooled = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    assert chain_of(unpooled, (1, 4, 4)) == ((Conv(1, 4, 4, 3, 3, 1, 1, 0, 1),), (48, 2))


CONV = nn.Conv2d(1, 3, 3)


@pytest.mark.parametrize(
    ("num_features", "layers"),
    [
        (3, [nn.Conv2d(1, 3, 3, stride=2), nn.ReLU()]),
        (12, [nn.Conv2d(1, 3, 3, padding=1, dilation=2), nn.ReLU()]),
        (48, [nn.Conv2d(1, 3, 3, padding="same"), nn.ReLU()]),
        (48, [nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.ReLU()]),
        (12, [nn.Conv2d(1, 3, 3, bias=False), nn.ReLU()]),
        (9, [CONV, nn.ReLU(), nn.MaxPool2d(2, 1, padding=1)]),
        (12, [CONV]),
        (12, [CONV, nn.Tanh()]),
        (3, [CONV, nn.ReLU(), nn.MaxPool2d(2, 1)]),
        (6, [CONV, nn.ReLU(), nn.MaxPool2d((2, 1))]),
        (12, [CONV, nn.ReLU(), nn.MaxPool2d(2, padding=1)]),
        (12, [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, dilation=2)]),
        (12, [nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]),
        (3, [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]),
        (12, [CONV, nn.BatchNorm2d(3), nn.ReLU()]),
        (13, [CONV, nn.ReLU()]),
        (27, [nn.Conv2d(1, 3, 8), nn.ReLU()]),  # of a height and a width of -3
        (12, [CONV, nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()]),
    ],
    ids=lambda value: None,
)
def test_what_is_no_chain_of_convolutions(num_features, layers):
    assert chain_of(nn.Sequential(*layers, nn.Flatten(), nn.Linear(num_features, 2)), (1, 4, 4)) is None


class GlobalPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.conv(x).relu()
        return self.linear(F.max_pool2d(h, h.size()[2:]).flatten(1))


class Doubled(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Twice(nn.Sequential):
    def forward(self, x):
        return self[0](self[0](x).relu())


class Frozen(nn.Sequential):
    def forward(self, x):
        with torch.no_grad():
            h = self[0](x)
        return self[2](self[1](h))


class Noisy(nn.Sequential):
    def forward(self, x):
        return super().forward(x + 1 if self.training else x)


class Limited(nn.Sequential):
    """Whose trace, which replaces attributes alone, does not show its limits."""

    def forward(self, x):
        for param in self.parameters():
            param.data.clamp_(-0.9, 0.9)
        return super().forward(x)


class Skipping(nn.Sequential):
    """Stochastic depth, of which a trace sees one depth."""

    def forward(self, x):
        return super().forward(x) if random.random() < 1 else x


class Named(nn.Module):
    """Whose ``relu`` is another function."""

    def __init__(self, relu):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(3, 3), relu, nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.relu(self.first(x)))


THREE = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        ((6,), Functional(lambda x, h: h + x[:, :2])),
        ((6,), Functional(lambda x, h: h if h.sum() > 0 else x)),
        ((6,), Functional(lambda x, h: h.relu())),
        ((6,), Functional(lambda x, h: (h, h))),
        ((3,), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))),
        ((3,), nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))),
        ((3,), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.ReLU(), nn.Linear(3, 3))),
        ((1,), nn.Sequential(nn.Flatten(0), nn.Linear(2, 3))),
        ((3,), nn.Sequential(nn.Linear(3, 3, bias=False))),
        ((3,), nn.Sequential(nn.Linear(3, 3).double())),
        ((3,), nn.Sequential(nn.ReLU())),
        ((3,), linear_with(lambda model: model[0].requires_grad_(False))),
        ((3,), linear_with(lambda model: setattr(model[0], "weight", model[2].weight))),
        ((3,), linear_with(lambda model: model.register_buffer("count", torch.zeros(1)))),
        ((3,), linear_with(lambda model: model.register_parameter("unused", nn.Parameter(torch.zeros(1))))),
        ((3,), linear_with(lambda model: model[0].register_forward_hook(lambda *_: None))),
        ((3,), linear_with(lambda model: model[0].register_full_backward_hook(lambda *_: None))),
        ((3,), linear_with(lambda model: model[0].weight.register_hook(lambda gradient: gradient))),
        ((3,), linear_with(lambda model: setattr(model[1], "forward", torch.relu))),
        ((3,), linear_with(lambda model: nn.utils.parametrizations.weight_norm(model[0]))),
        ((3,), Named(nn.LeakyReLU())),
        ((3,), Named(nn.Dropout())),
        ((3,), Twice(*THREE[:1])),
        ((3,), Frozen(*THREE)),
        ((3,), Doubled(*THREE)),
        ((3,), Limited(*THREE)),
        ((3,), Skipping(*THREE)),
        ((3,), Noisy(*THREE).eval()),
        ((1, 5, 5), GlobalPooling()),
    ],
    ids=lambda value: None,
)
def test_what_is_no_chain(shape, model):
    assert chain_of(model, shape) is None


def test_the_optimizers_that_it_knows():
    partial = functools.partial
    assert optimizer_of(torch.optim.SGD, 0.5) == Sgd(0.5)
    made = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1)
    assert optimizer_of(made, 0.5) == Sgd(0.5, 0.9, 0, 0.1, True)
    assert optimizer_of(partial(torch.optim.SGD, maximize=True), 0.5) is None
    assert optimizer_of(torch.optim.Adam, 0.5) == Adam(0.5)
    made = partial(torch.optim.AdamW, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    assert optimizer_of(made, 0.5) == Adam(0.5, 0.8, 0.9, 1e-6, 0.1, decoupled=True)
    for options in ({"amsgrad": True}, {"maximize": True}, {"eps": 0.0}):
        assert optimizer_of(partial(torch.optim.Adam, **options), 0.5) is None
    assert optimizer_of(torch.optim.RMSprop, 0.5) is None
    assert optimizer_of(type("Own", (torch.optim.SGD,), {}), 0.5) is None
    assert optimizer_of(lambda params, lr: torch.optim.SGD([{"params": [each]} for each in params], lr), 0.5) is None
    assert optimizer_of(lambda params, lr: torch.optim.SGD(params[:1], lr), 0.5) is None
    assert optimizer_of(clipping_sgd, 0.5) is None


def clipping_sgd(params, lr):
    optimizer = torch.optim.SGD(params, lr)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(params, 1.0))
    return optimizer


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nonexistent", r"/nonexistent does not exist; install a C\+\+ compiler, or set CXX=PATH"),
        ("", r"none of c\+\+, g\+\+, clang\+\+ exists; install a C\+\+ compiler, or set CXX=PATH"),
        ("false", "false cannot compile the kernel: exit code 1"),
        ("true", "cannot open shared object|No such file"),
    ],
)
def test_without_a_working_compiler(tmp_path, monkeypatch, compiler, reason):
    dense._library.cache_clear()
    if not compiler:
        monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(KernelUnavailable, match=reason):
        DenseKernel(Chain((), (4, 3)), False, 1, tmp_path)
    dense._library.cache_clear()


def test_code_that_others_may_have_written_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(KernelUnavailable, match="must be a folder that only you can write"):
        DenseKernel(Chain((), (4, 3)), False, 1, tmp_path / "cache")


def test_orders_that_torch_would_draw_in_another_way(cache, monkeypatch):
    dense._library.cache_clear()
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    with pytest.raises(KernelUnavailable, match=r"torch\.randperm of PyTorch .* draws other numbers"):
        DenseKernel(Chain((), (4, 3)), False, 1, cache)


def test_a_kernel_that_differs_from_autograd(cache, monkeypatch):
    monkeypatch.setattr(dense, "losses", lambda outputs, targets: outputs.sum(1))
    with pytest.raises(KernelUnavailable, match="the compiled kernel differs from PyTorch"):
        DenseKernel(Chain((), (4, 3)), False, 1, cache)


@pytest.mark.slow
def test_more_memory_than_there_is(cache):
    """The limit holds in a process of its own."""
    code = f"""
import resource, numpy as np
from fedresearch.local.dense import Chain, DenseKernel, Sgd
from fedresearch.local.train import LocalWork
DenseKernel._compare_with_torch = lambda kernel: None  # which would need more memory
kernel = DenseKernel(Chain((), (30000, 3000)), False, 1, {str(cache)!r})
params, out = np.zeros(30001 * 3000, np.float32), np.empty((1, 30001 * 3000), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))
try:
    kernel(x=np.zeros((2, 30000), np.float32), y=np.zeros(2, np.int64), starts=np.zeros(1, np.int64),
           sizes=np.array([2]), seeds=np.zeros(1, np.uint64), work=LocalWork(1, None, 1), params=params,
           optimizer=Sgd(0.1), out=out)
except MemoryError as error:
    print(error)
"""
    done = warm.python("-c", code, cwd=cache.parent, env=dict(os.environ))
    assert done.stdout == "1 threads of the kernel need more memory than there is\n"


@pytest.mark.slow
def test_two_processes_compile_at_once(tmp_path, quick_compiler):
    """Each loads a whole file, and one is left."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": "", "CXX": quick_compiler}
    code = (
        f"from fedresearch.local import dense; dense.DenseKernel(dense.Chain((), (4, 3)), False, 1, {str(tmp_path)!r})"
    )
    both = [warm.Command("-c", code, cwd=tmp_path, env=env) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len([*tmp_path.glob("compiled-*/*")]) == 1


def test_a_term_is_added_to_the_gradients():
    gradients, params = {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}
    assert LocalUpdate().correct(gradients, params, {}) is gradients

    class Both(LocalUpdate):
        def term(self, fixed):
            return Term(shift={"w": torch.tensor([10.0])}, mu=0.5, anchor={"w": torch.tensor([1.0])})

    assert Both().correct(gradients, params, {}) == {"w": torch.tensor([1 + 10 + 0.5 * (5 - 1)])}
