"""Pixels and the random transforms of training samples: on every hardware, and equal to what a formula gives."""

import numpy as np
import pytest
import torch

from fedresearch.data.federated import FederatedData
from fedresearch.data.images import normalisation
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment
from fedresearch.experiment.rehearsal import rehearse
from fedresearch.local.inputs import Inputs
from fedresearch.local.train import LocalWork
from fedresearch.local.transforms import Crop, Flip, Transform
from tests.conftest import MNIST
from tests.directories import conduct, killed, outcome

SMALL = ["federation.num_supernodes=6", "federation.num_rounds=3", "local.epochs=2", "local.batch_size=20"]
TRANSFORM = ["transform=[crop,flip]", "transform.crop.padding=1"]
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
        def split(samples, size):
            return inputs.split(samples, size, generator)

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
    options = [
        *("dataset=mnist", f"dataset.root={MNIST}", "federation.num_supernodes=600", "federation.fraction_train=0.005"),
        *("federation.num_rounds=1", "local.steps=3", "local.epochs=null", "dtype=float64", *hardware),
    ]
    on_pixels = run(*options)
    assert on_pixels.experiment.data.x.dtype == torch.uint8

    def in_advance(source, train, validation, dtype):
        floats = (Samples(source.normalise(part.x), part.y) for part in (source.train, source.test))
        return build(Source(*floats), train, validation, dtype)

    build = FederatedData.build
    monkeypatch.setattr(FederatedData, "build", in_advance)
    on_floats = run(*options)
    assert on_floats.experiment.data.x.dtype == torch.float64
    for name, array in on_floats.arrays.items():
        np.testing.assert_array_equal(on_pixels.arrays[name], array)


@pytest.mark.parametrize("strategy", ["fedavg", "fedrep", "ditto", "scaffold"])
def test_a_batched_cohort_transforms_as_its_clients_do(run, strategy):
    options = [*SMALL, *TRANSFORM, "dtype=float64", f"strategy={strategy}"]
    alone, together, plain = run(*options), run(*options, *EAGER), run(*SMALL, "dtype=float64", f"strategy={strategy}")
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together.arrays[name], array, rtol=0, atol=1e-12 * np.abs(array).max())
    assert any(not np.allclose(plain.arrays[name], array, atol=1e-3) for name, array in alone.arrays.items())


def test_the_compiled_step_transforms_too_also_after_a_round_of_another_number_of_steps(run):
    options = [*SMALL, *TRANSFORM, "dtype=float64", "sampling=round_robin", "federation.fraction_train=0.34"]
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
