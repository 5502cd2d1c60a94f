"""Pixels and the random transforms of training samples: on every hardware, and equal to what a formula gives."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedresearch import load_model
from fedresearch.data.federated import FederatedData
from fedresearch.data.images import normalisation
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError
from fedresearch.experiment import experiment as experiment_module
from fedresearch.experiment.advice import _unusual_model
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.model import build_model
from fedresearch.experiment.rehearsal import rehearse
from fedresearch.local.inputs import Inputs
from fedresearch.local.mixing import Mixed, objective, partners
from fedresearch.local.objective import losses
from fedresearch.local.train import LocalTrainer, LocalWork, Task
from fedresearch.local.transforms import Crop, Fixed, Flip, Mixup, Transform, resize, to_rgb
from fedresearch.local.update import LocalUpdate
from fedresearch.models.mlp import MLP
from tests.conftest import MNIST
from tests.directories import conduct, killed, outcome

SMALL = ["federation.num_supernodes=6", "federation.num_rounds=2", "local.epochs=2", "local.batch_size=20"]
NARROW = ["model=mlp", "model.widths=[6]"]
TRANSFORM = ["transform=[crop,resize,flip,mixup]", "transform.crop.padding=1", "transform.resize.height=9"]
EAGER = ["hardware=batched", "hardware.compile=false"]


def test_a_crop_is_a_window_of_the_padded_image():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.uint8) + 1
    padded = np.zeros((2, 3, 8, 9), np.uint8)
    padded[:, :, 2:6, 2:7] = x.numpy()
    drawn = {"top": torch.tensor([0, 3]), "left": torch.tensor([4, 1])}
    cut = Crop(2).apply(x, drawn)
    assert cut.dtype == torch.uint8
    np.testing.assert_array_equal(cut[0], padded[0, :, 0:4, 4:9])
    np.testing.assert_array_equal(cut[1], padded[1, :, 3:7, 1:6])


def test_crops_begin_at_every_place_equally_often():
    """Five places each way, 10,000 draws: a count has a standard deviation of 40 around 2,000."""
    drawn = Crop(2).draw((10_000, 3, 8, 8), torch.Generator().manual_seed(0))
    for places in drawn.values():
        assert torch.bincount(places).tolist() == pytest.approx([2000] * 5, abs=4 * 40)
    assert not torch.equal(drawn["top"], drawn["left"])


def test_a_flip_mirrors_the_drawn_images():
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    flipped = Flip(0.5).apply(x, {"is_flipped": torch.tensor([True, False])})
    np.testing.assert_array_equal(flipped[0], x[0].numpy()[:, :, ::-1])
    np.testing.assert_array_equal(flipped[1], x[1])
    shares = [Flip(p).draw((10_000, 1, 1, 1), torch.Generator())["is_flipped"].double().mean() for p in (0, 0.3, 1)]
    assert shares == pytest.approx([0, 0.3, 1], abs=0.02)  # four standard deviations of .0046


def test_every_epoch_has_draws_of_its_own_and_a_batch_size_does_not_change_them():
    x = torch.arange(2000.0)[:, None, None, None].expand(-1, 1, 1, 2) + torch.tensor([0, 0.5])
    inputs = Inputs(transforms=[Flip(0.5)])

    def epochs(batch_size):
        def split(samples, targets, size):
            return inputs.split(samples, targets, size, generator)

        generator = torch.Generator().manual_seed(7)
        work = LocalWork(2, None, batch_size)
        batches = [batch for batch, _ in work.batches(x, x, torch.Generator().manual_seed(1), split)]
        assert max(map(len, batches)) == batch_size
        return torch.cat(batches).chunk(2)

    first, second = epochs(batch_size=30)
    flipped = [
        (epoch[..., 0] > epoch[..., 1]).flatten()[epoch[..., 0].flatten().argsort()] for epoch in (first, second)
    ]
    assert not torch.equal(*flipped)
    for one, other in zip((first, second), epochs(batch_size=1500), strict=True):
        assert torch.equal(one, other)


def test_pixels_are_kept_as_bytes_and_normalised_as_in_advance():
    """A set as large as CIFAR-10's hundredth takes what its pixels take."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 3, 32, 32), np.uint8)
    y = torch.arange(600) % 10
    split = Samples(torch.from_numpy(pixels[:500]), y[:500]), Samples(torch.from_numpy(pixels[500:]), y[500:])
    source = Source(*split, normalisation(3, [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]))
    rows = [np.arange(0, 250), np.arange(250, 450)]
    data = FederatedData.build(source, rows, [np.arange(450, 500), rows[0][:0]], torch.float64)
    assert data.x.nbytes + data.test_x.nbytes == pixels.nbytes
    means, stds = (np.array(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]))
    made = data.prepare(data.train_samples(1)[0])
    assert made.dtype == torch.float64
    np.testing.assert_allclose(made, (pixels[250:450] / 255 - means) / stds, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not on this machine")
@pytest.mark.parametrize("hardware", [["hardware=cpu"], EAGER])
def test_a_step_on_pixels_is_a_step_on_normalised_floats(run, monkeypatch, hardware):
    """The first 500 samples of each part."""
    options = [
        *("dataset=mnist", f"dataset.root={MNIST}", "federation.num_supernodes=5", "partitioner=iid", "model=logistic"),
        *("federation.num_rounds=1", "local.steps=3", "local.epochs=null", "dtype=float64", *hardware),
    ]
    load = experiment_module.load_source

    def few_samples(*given):
        source = load(*given)
        few = (Samples(part.x[:500], part.y[:500]) for part in (source.train, source.test))
        return replace(source, **dict(zip(("train", "test"), few, strict=True)))

    def in_advance(*given):
        source = few_samples(*given)
        return Source(*(Samples(source.normalise(part.x), part.y) for part in (source.train, source.test)))

    monkeypatch.setattr(experiment_module, "load_source", few_samples)
    on_pixels = run(*options)
    assert on_pixels.experiment.data.x.dtype == torch.uint8
    monkeypatch.setattr(experiment_module, "load_source", in_advance)
    on_floats = run(*options)
    assert on_floats.experiment.data.x.dtype == torch.float64
    for name, array in on_floats.arrays.items():
        np.testing.assert_array_equal(on_pixels.arrays[name], array)


@pytest.mark.parametrize("strategy", ["fedrep", "ditto", "moon"])  # two stages, two models, three passes
def test_a_batched_cohort_transforms_as_its_clients_do(run, strategy):
    options = [*SMALL, *NARROW, *TRANSFORM, "dtype=float64", f"strategy={strategy}"]
    alone, together = run(*options), run(*options, *EAGER)
    resized = run(*SMALL, *NARROW, "transform=[resize]", TRANSFORM[-1], "dtype=float64", f"strategy={strategy}")
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together.arrays[name], array, rtol=0, atol=1e-12 * np.abs(array).max())
    assert any(not np.allclose(resized.arrays[name], array, atol=1e-3) for name, array in alone.arrays.items())


def test_the_compiled_step_transforms_too_also_after_a_round_of_another_number_of_steps(run):
    options = [*SMALL, *NARROW, *TRANSFORM, "dtype=float64", "sampling=round_robin", "federation.fraction_train=0.34"]
    alone, compiled = run(*options), run(*options, "hardware=batched")
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(compiled.arrays[name], array, rtol=0, atol=1e-12 * np.abs(array).max())


def test_workers_give_the_same_bits(run):
    assert run(*SMALL, *TRANSFORM, "hardware=workers").numbers() == run(*SMALL, *TRANSFORM).numbers()


def test_a_resume_transforms_as_if_nothing_had_happened(tmp_path):
    options = ["model=mlp", *TRANSFORM, "checkpoint.every=1"]
    done = conduct(tmp_path / "done", *options)
    conduct(killed(done, tmp_path / "killed", checkpoint=1), *options)
    assert outcome(tmp_path / "killed") == outcome(done)


def test_images_are_needed(compose):
    with pytest.raises(InputError, match="transform=flip needs image input, got dataset=fcube, whose input is vector"):
        compose("dataset=fcube", "transform=[flip]")
    with pytest.raises(
        InputError, match=r"^transform.crop.padding must be below the images' side of 8 pixels, got 8; "
    ):
        compose("transform=[crop]", "transform.crop.padding=8")
    compose("transform=[crop]", "transform.crop.padding=7")
    compose("transform=[resize,crop]", "transform.crop.padding=31")
    with pytest.raises(InputError, match="side of 8 pixels, got 9"):
        compose("transform=[crop,resize]", "transform.crop.padding=9")
    with pytest.raises(InputError, match="transform=mixup needs image or vector input, got dataset=shakespeare"):
        compose("dataset=shakespeare", "model=char_lstm", "transform=[mixup]")


def test_a_transform_in_place_leaves_the_clients_samples():
    """Also those of a full batch, which is a view of them: zeros plus 1 are ones in each of two epochs."""

    class Shifted(Transform):
        def draw(self, shape, generator):
            return {}

        def apply(self, x, drawn):
            return x.add_(1)

    x, inputs = torch.zeros(3, 1), Inputs(transforms=[Shifted()])
    generator = torch.Generator()
    batches = LocalWork(2, None, 0).batches(x, x, generator, lambda *args: inputs.split(*args, generator))
    assert [batch.tolist() for batch, _ in batches] == [[[1], [1], [1]]] * 2
    assert not x.any()


def test_a_transform_that_fails_is_named(compose, monkeypatch):
    monkeypatch.setattr(Flip, "apply", lambda self, x, drawn: x[:, 0, :-1])
    experiment = Experiment(*compose("transform=[flip]"))
    with pytest.raises(
        InputError, match=r"^model=mlp cannot train on dataset=digits with strategy=fedavg and transform"
    ):
        rehearse(experiment)


def test_resized_images_are_interpolated_between_the_nearest_pixels():
    """Twice as many pixels have their centres a quarter from the old ones; half as many average a triangle of four."""
    row = np.array([0, 4, 8, 20], np.uint8)
    image = torch.from_numpy(np.stack([row, row, row + 100, row + 100]))[None, None]
    larger, smaller = (resize(image, height=4, width=width) for width in (8, 2))
    expected = np.array([0, 1, 3, 5, 7, 11, 17, 20])
    np.testing.assert_allclose(larger[0, 0], np.stack([expected, expected, expected + 100, expected + 100]), atol=1e-4)
    # Weights 1, 3, 3, 1 of an eighth; at the edge without the first, and so of a seventh.
    np.testing.assert_allclose(smaller[0, 0, 0], [(3 * 0 + 3 * 4 + 8) / 7, (4 + 3 * 8 + 3 * 20) / 7], atol=1e-4)
    assert resize(image.double(), height=9, width=7).dtype == torch.float64


def test_grey_images_become_rgb_and_rgb_stays():
    grey, coloured = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2), torch.arange(12.0).reshape(1, 3, 2, 2)
    assert torch.equal(to_rgb(grey), torch.cat([grey] * 3, dim=1))
    assert torch.equal(to_rgb(coloured), coloured)


@pytest.mark.parametrize("hardware", [["hardware=cpu"], EAGER])
def test_fixed_transforms_give_what_samples_transformed_in_advance_give(run, monkeypatch, hardware):
    """In training, in the clients' evaluation and in the server's; LeNet needs 16 x 16 pixels."""
    options = ["model=lenet", "federation.num_rounds=2", "federation.num_supernodes=4", "local.epochs=1", *hardware]
    on_the_fly = run(*options, "transform=[resize,to_rgb]", "transform.resize.height=16", "transform.resize.width=18")
    assert next(iter(on_the_fly.experiment.model.parameters())).shape[1] == 3
    experiment = on_the_fly.experiment
    source = experiment_module.load_source(experiment.config, experiment.choices, experiment.builder)
    parts = [Samples(to_rgb(resize(part.x, height=16, width=18)), part.y) for part in (source.train, source.test)]
    monkeypatch.setattr(experiment_module, "load_source", lambda *_: Source(*parts))
    in_advance = run(*options, "dataset.declares.input_shape=[3,16,18]")
    assert on_the_fly.numbers() == in_advance.numbers()


def test_the_grey_levels_of_rgb_images_are_normalised_by_those_of_grey_ones():
    pixels = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = Inputs(normalisation(1, [0.3], [0.2]), [Fixed(to_rgb, [3, None, None])])
    expected = np.repeat((pixels.numpy() / 255 - 0.3) / 0.2, 3, axis=1)
    np.testing.assert_allclose(inputs.prepare(pixels), expected, rtol=1e-5, atol=1e-6)
    ((made, _),) = inputs.split(pixels, torch.zeros(4), 4, torch.Generator())
    assert torch.equal(made, inputs.prepare(pixels))


def test_a_small_image_set_trains_a_resnet(compose):
    config, choices = compose("dataset=mnist", "model=resnet18", "transform=[resize,to_rgb]")
    outputs = build_model(config, choices)(torch.zeros(2, 3, 32, 32))
    outputs.sum().backward()
    assert outputs.shape == (2, 10)
    assert not [*_unusual_model(config, choices)]
    assert [*_unusual_model(*compose("dataset=mnist", "model=resnet18", "transform=[to_rgb]"))]


def test_a_loaded_model_takes_transformed_inputs(tmp_path):
    directory = conduct(tmp_path / "run", "transform=[resize,to_rgb]", "transform.resize.height=4")
    assert load_model(directory)(torch.zeros(5, 3, 4, 4)).shape == (5, 10)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            "[null,4,4]",
            r"^transform=\[odd\]: inputs must have the shape \[1, 4, 4\] that is declared, got \[1, 5, 5\]; see "
            r"transform.NAME.declares.input_shape in its YAML$",
        ),
        (
            "[4]",
            r"^transform.odd.declares must be an input_shape of 3 integers >= 1, with null for each that stays, got "
            r"{'input_shape': \[4\]}; its option's YAML must give it, such as {input_shape: \[null, null, null\]}$",
        ),
        ("4", "^transform.odd.declares must be an input_shape of 3 integers"),
        ("[null,0,4]", "^transform.odd.declares must be an input_shape of 3 integers"),
    ],
)
def test_a_transform_must_give_the_shape_that_it_declares(compose, tmp_path, shape, message):
    (tmp_path / "transform").mkdir()
    (tmp_path / "transform" / "odd.yaml").write_text(
        "odd: {_target_: torchvision.transforms.v2.functional.center_crop, output_size: [5, 5], "
        f"declares: {{input_shape: {shape}}}}}"
    )
    with pytest.raises(InputError, match=message):
        Experiment(*compose("transform=[odd]", config_dir=tmp_path)).inputs  # noqa: B018


def test_the_weights_of_mixup_are_one_beta_draw_for_each_batch():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); bounds of four standard deviations."""
    generator = torch.Generator().manual_seed(0)
    for alpha in (0.2, 1.0, 5.0):
        ((drawn),) = Inputs(transforms=[Mixup(alpha)]).draw((8000, 2), 2, generator)
        first, second = drawn["weight"].view(-1, 2).unbind(1)
        assert torch.equal(first, second)
        variance = 1 / (4 * (2 * alpha + 1))
        assert first.mean().item() == pytest.approx(0.5, abs=4 * (variance / 4000) ** 0.5)
        assert first.var().item() == pytest.approx(variance, rel=0.1)
    assert {0.0, 1.0} >= {Mixup(1e-5).draw((1,), generator)["weight"].round(decimals=6).item() for _ in range(20)}


def test_partners_are_of_the_same_batch_each_once():
    ((drawn),) = Inputs(transforms=[Mixup(1.0)]).draw((25, 2), 10, torch.Generator().manual_seed(0))
    own = partners(torch.arange(25), drawn)
    for batch, places in zip(own.split(10), torch.arange(25).split(10), strict=True):
        assert sorted(batch.tolist()) == places.tolist()
    assert own.tolist() != list(range(25))


def test_steps_with_mixup_are_those_of_a_formula():
    """Two steps of a softmax regression in NumPy, on samples of two classes each; the second batch is short.

    The gradient for the logits is p - (lambda e_y + (1 - lambda) e_y'), with y' the class of the partner.
    """
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (7, 4), np.uint8), rng.integers(0, 3, 7)
    torch.manual_seed(0)  # of the first weights
    model = torch.nn.Linear(4, 3).double()
    weight, bias = (tensor.detach().numpy().copy() for tensor in model.parameters())
    transform = Mixup(0.4)
    inputs = Inputs(lambda pixels: pixels.double() / 255, [transform])
    task = Task(
        model.state_dict(), torch.from_numpy(x), torch.from_numpy(y), LocalUpdate(), LocalUpdate().stages(model),
        {"lr": 0.5}, {"batches": 3, "dropout": 0, "transforms": 5, "local-update": 0}.__getitem__, inputs=inputs,
    )  # fmt: skip
    trained = LocalTrainer(model, torch.optim.SGD, LocalWork(1, None, 4))(task)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3)).numpy()
    (drawn,) = inputs.draw((7, 4), 4, torch.Generator().manual_seed(5))
    found = []
    for start, stop in ((0, 4), (4, 7)):
        places = np.arange(start, stop)
        own, others = order[places], order[places + drawn["offset"].numpy()[start:stop]]
        assert sorted(own) == sorted(others)
        share = drawn["weight"].numpy()[start:stop, None]
        mixed = (share * x[own] + (1 - share) * x[others]) / 255
        targets = share * np.eye(3)[y[own]] + (1 - share) * np.eye(3)[y[others]]
        logits = mixed @ weight.T + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        found.append(-(targets * np.log(p)).sum(1).mean())
        weight, bias = weight - 0.5 * (p - targets).T @ mixed / len(own), bias - 0.5 * (p - targets).mean(0)
    np.testing.assert_allclose(trained.state["weight"], weight, rtol=1e-6)
    np.testing.assert_allclose(trained.state["bias"], bias, rtol=1e-6)
    assert trained.loss == pytest.approx(np.mean(found), rel=1e-6)


def test_both_targets_share_one_pass_through_the_model():
    """Also where samples are mixed twice: then each has four targets."""
    model, calls = MLP((4,), 3, widths=[5]), []

    def forward(params, x):
        calls.append(x)
        return model(x)

    x, y = torch.randn(3, 4), torch.arange(3)
    weights = torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0.75, 0.5, 0.0])
    once = Mixed(y, y.flip(0), weights[0])
    twice = Mixed(once, Mixed(y.roll(1), y.roll(2), weights[0]), weights[1])
    found = objective(LocalUpdate(), forward, {}, x, twice, {})
    assert len(calls) == 1
    own, flipped, rolled, back = (losses(model(x), targets) for targets in (y, y.flip(0), y.roll(1), y.roll(2)))
    a, b = weights
    torch.testing.assert_close(found, b * (a * own + (1 - a) * flipped) + (1 - b) * (a * rolled + (1 - a) * back))


def test_a_regression_is_mixed_too(run):
    """The gradients are those for mixed targets m: l (f - y)^2 + (1 - l) (f - y')^2 is (f - m)^2 and a constant."""
    options = [*SMALL, "dataset=diabetes", "partitioner=iid", "model=logistic", "transform=[mixup]", "dtype=float64"]
    alone, together = run(*options), run(*options, *EAGER)
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together.arrays[name], array, rtol=0, atol=1e-12 * np.abs(array).max())


class Everywhere(Transform):
    """Draws from the global generators."""

    def draw(self, shape, generator):
        factors = np.random.random(shape[0]) * random.random()
        return {"factor": torch.rand(shape[0]) * torch.from_numpy(factors)}

    def apply(self, x, drawn):
        return x * drawn["factor"].to(x.dtype)[:, None, None, None]


def test_global_generators_are_seeded_for_a_transform(run, monkeypatch):
    monkeypatch.setattr("fedresearch.local.transforms.Flip.draw", Everywhere.draw)
    monkeypatch.setattr("fedresearch.local.transforms.Flip.apply", Everywhere.apply)
    options = [*SMALL, "transform=[flip]", "dtype=float64"]
    alone, again, together = run(*options), run(*options), run(*options, *EAGER)
    assert alone.numbers() == again.numbers()
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together.arrays[name], array, rtol=0, atol=1e-12 * np.abs(array).max())
