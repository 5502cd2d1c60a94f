"""Datasets that need no network: generated ones, bundled ones, and MNIST's files."""

import gzip
import random
import struct

import hydra.utils
import numpy as np
import pytest
import torch

from fedresearch.data import diabetes, digits, fcube, idx, mnist1d, synthetic
from fedresearch.errors import InputError
from fedresearch.study.report.load import load
from tests.directories import conduct

OFFLINE = ["diabetes", "digits", "fcube", "mnist1d", "synthetic", "synthetic_iid"]
ONLINE = ["cifar10", "cifar100", "fashion_mnist", "femnist", "mnist", "shakespeare"]


def test_every_option_is_in_a_list(pytestconfig):
    options = {path.stem for path in (pytestconfig.rootpath / "conf" / "dataset").glob("[!_]*.yaml")}
    assert options == {*OFFLINE, *ONLINE}


@pytest.mark.parametrize("option", OFFLINE)
def test_an_option_holds_what_it_declares(compose, option):
    config, _ = compose(f"dataset={option}", "partitioner=iid")
    options = dict(config.dataset)
    declares = options.pop("declares")
    source = hydra.utils.instantiate(options, _convert_="all")
    train, test = source.train, source.test
    for samples in (train, test):
        assert list(samples.x.shape) == [len(samples.y), *declares["input_shape"]]
        assert samples.x.is_contiguous()
        assert samples.x.is_floating_point()
        assert torch.isfinite(samples.x).all()
    assert (train.natural_id is not None) == ("natural_id" in declares["columns"])
    assert declares["input"] == ("image" if train.x.ndim == 4 else "vector")
    if "label" in declares["columns"]:
        assert train.y.dtype == test.y.dtype == torch.int64
        assert set(train.y.tolist()) == set(range(declares["num_classes"]))
        assert set(test.y.tolist()) <= set(range(declares["num_classes"]))
    else:
        assert list(train.y.shape) == [len(train.x), declares["num_classes"]]
        assert train.y.is_floating_point()


def test_digits_are_those_of_scikit_learn_in_its_split():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rows = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    source = digits.load()
    for held, samples in zip(rows, (source.train, source.test), strict=True):
        assert samples.x.dtype == torch.float32
        assert samples.x.reshape(-1, 64).tolist() == (images[held] / 16).tolist()
        assert samples.y.dtype == torch.int64
        assert samples.y.tolist() == labels[held].tolist()


def test_digits_are_all_of_them_once():
    from sklearn.datasets import load_digits

    source = digits.load()
    assert (len(source.train.y), len(source.test.y)) == (1437, 360)  # 1,797 less 20 %, rounded up
    everything = torch.cat([source.train.x, source.test.x]).reshape(-1, 64) * 16
    published = load_digits().data
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, published.tolist()))
    # Stratified: each class gives a fifth of itself, to within one sample.
    in_all, in_test = np.bincount(load_digits().target), torch.bincount(source.test.y).numpy()
    assert np.abs(in_all * 360 / 1797 - in_test).max() < 1


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_diabetes_is_learnt_with_the_rate_that_its_divergence_names(tmp_path, strategy):
    options = [f"strategy={strategy}", "dataset=diabetes", "partitioner=iid", "model=mlp", "federation.num_rounds=10"]
    options += ["federation.num_supernodes=10", "federation.fraction_train=0.5", "local.epochs=5", "local.steps=null"]
    with pytest.raises(InputError, match=r"try a smaller optimizer\.lr, such as optimizer\.lr=0\.01, or"):
        conduct(tmp_path / "default", *options)
    conduct(tmp_path / "smaller", *options, "optimizer.lr=0.01")
    (run,) = load([tmp_path / "smaller"])
    assert run.column("eval/r2")[-1] > 0.2  # 0: no better than the mean


def test_diabetes_is_standardised_by_its_training_split():
    from sklearn.datasets import load_diabetes

    source = diabetes.load()
    assert (len(source.train.y), len(source.test.y)) == (353, 89)  # 442 less 20 %, rounded up
    for array in (source.train.x, source.train.y):
        np.testing.assert_allclose(array.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(array.std(0, correction=0), 1, rtol=1e-12)
    # An affine map keeps every correlation.
    y = torch.cat([source.train.y, source.test.y])[:, 0]
    x = torch.cat([source.train.x, source.test.x])
    published = load_diabetes()
    for j in range(10):
        ours, theirs = np.corrcoef(x[:, j], y)[0, 1], np.corrcoef(published.data[:, j], published.target)[0, 1]
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_mnist1d_is_the_packages_and_leaves_the_global_generators_alone():
    from mnist1d.data import get_dataset_args, make_dataset

    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    expected = (random.Random(1).random(), np.random.RandomState(2).random(), torch.rand(1))
    torch.manual_seed(3)
    source = mnist1d.load()
    assert (random.random(), np.random.random()) == expected[:2]
    assert torch.equal(torch.rand(1), expected[2])

    made = make_dataset(get_dataset_args())  # its default seed is 42, the published one
    np.testing.assert_array_equal(source.train.x, made["x"].astype(np.float32))
    np.testing.assert_array_equal(source.test.x, made["x_test"].astype(np.float32))
    np.testing.assert_array_equal(source.train.y, made["y"])
    np.testing.assert_array_equal(source.test.y, made["y_test"])
    assert not torch.equal(mnist1d.load(seed=43).train.x, source.train.x)


def published_synthetic(alpha, beta, iid, seed):
    """The authors' recipe, sample by sample, on the global generators."""
    np.random.seed(seed)
    random.seed(seed)
    sizes = [int(size) + 50 for size in np.random.lognormal(4, 2, 30)]
    covariance = np.diag([np.power(j, -1.2) for j in range(1, 61)])
    if iid:
        v = np.zeros((30, 60))
        shared = np.random.normal(0, 1, (60, 10)), np.random.normal(0, 1, 10)
    else:
        u, b = np.random.normal(0, alpha, 30), np.random.normal(0, beta, 30)
        v = [np.random.normal(b[k], 1, 60) for k in range(30)]
    devices = []
    for k in range(30):
        model = shared if iid else (np.random.normal(u[k], 1, (60, 10)), np.random.normal(u[k], 1, 10))
        inputs = np.random.multivariate_normal(v[k], covariance, sizes[k])
        devices.append([(x, int(np.argmax(x @ model[0] + model[1]))) for x in inputs])
    for pairs in devices:
        random.shuffle(pairs)
    train = [(x, y, k) for k, pairs in enumerate(devices) for x, y in pairs[: int(0.9 * len(pairs))]]
    test = [(x, y, k) for k, pairs in enumerate(devices) for x, y in pairs[int(0.9 * len(pairs)) :]]
    return train, test


@pytest.mark.parametrize(("alpha", "beta", "iid", "seed"), [(1, 1, False, 0), (0, 0, False, 1), (0, 0, True, 2)])
def test_synthetic_is_the_published_recipe_bit_for_bit(alpha, beta, iid, seed):
    source = synthetic.load(alpha=alpha, beta=beta, iid=iid, seed=seed)
    states = random.getstate(), np.random.get_state()
    recipe = published_synthetic(alpha, beta, iid, seed)
    random.setstate(states[0])
    np.random.set_state(states[1])
    for samples, rows in zip((source.train, source.test), recipe, strict=True):
        x, y, device = map(np.array, zip(*rows, strict=True))
        np.testing.assert_array_equal(samples.x, x)
        np.testing.assert_array_equal(samples.y, y)
        np.testing.assert_array_equal(samples.natural_id, device)


def test_synthetic_sizes_and_moments_follow_the_law():
    source = synthetic.load(alpha=0.5, beta=2.0, num_devices=500, seed=3)
    device = np.concatenate([source.train.natural_id, source.test.natural_id])
    sizes = np.bincount(device)
    # log(size - 50) is N(4, 2^2) but for the rounding down, which matters to small sizes only; so the median and the
    # quantile at one deviation are compared. Their standard errors over 500 devices are 1.2533 * 2 / sqrt(500) = 0.11
    # and 2 * sqrt(.1587 * .8413 / 500) / .2420 = 0.14.
    assert np.log(np.median(sizes) - 50) == pytest.approx(4, abs=0.35)
    assert np.log(np.quantile(sizes, 0.8413) - 50) == pytest.approx(6, abs=0.45)
    assert sizes.min() >= 50
    assert len(source.test.y) == sum(size - int(0.9 * size) for size in sizes)

    # Within a device the variance of coordinate j is j^-1.2; means are B_k + N(0, 1), with B_k of deviation beta = 2.
    x = torch.cat([source.train.x, source.test.x]).numpy()
    sums = np.zeros((500, 60))
    np.add.at(sums, device, x)
    means = sums / sizes[:, None]
    within = ((x - means[device]) ** 2).sum(0) / (len(x) - 500)
    np.testing.assert_allclose(within, np.arange(1, 61) ** -1.2, rtol=0.03)
    assert means.mean(1).std() == pytest.approx(np.hypot(2, 60**-0.5), rel=0.12)
    assert (means - means.mean(1, keepdims=True)).std() == pytest.approx(1, rel=0.02)


def test_synthetic_with_its_own_seed_for_each_run(compose):
    config, _ = compose("dataset=synthetic", "dataset.seed=${seed}", "seed=7")
    assert config.dataset["seed"] == 7


def test_fcube_geometry():
    source = fcube.load(seed=5)
    x, y, location = source.train.x.numpy(), source.train.y.numpy(), source.train.natural_id
    assert x.shape == (4000, 3)
    assert np.abs(x).max() < 1
    np.testing.assert_array_equal(location, np.repeat(range(4), 1000))
    np.testing.assert_array_equal(y == 0, x[:, 0] > 0)
    for k, octant in enumerate([(1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1)]):
        signs = np.sign(x[location == k])
        sides = {tuple(side) for side in signs.tolist()}
        assert sides == {octant, tuple(-s for s in octant)}
        np.testing.assert_array_equal(y[location == k], [0, 1] * 500)
    # |U(0, 1)| has mean 1/2 and standard error 1 / sqrt(12 * 4000) = 0.0046.
    np.testing.assert_allclose(np.abs(x).mean(0), 0.5, atol=0.025)
    np.testing.assert_array_equal(source.test.y == 0, source.test.x[:, 0] > 0)
    assert len({tuple(side) for side in np.sign(source.test.x.numpy()).tolist()}) == 8
    # The first point and the third: what NIID-Bench draws after random.seed(5).
    draws = random.Random(5)
    u = [draws.random() for _ in range(6)]
    np.testing.assert_array_equal(x[:2], np.float32([u[:3], [-p for p in u[3:]]]))
    assert not torch.equal(fcube.load(seed=6).train.x, source.train.x)


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.fixture
def idx_files():
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (12, 5)]
    labels = [draw.integers(0, 10, n, dtype=np.uint8) for n in (12, 5)]
    arrays = dict(zip(NAMES, [images[0], labels[0], images[1], labels[1]], strict=True))
    return arrays, {name: idx_bytes(array) for name, array in arrays.items()}


def write(folder, files, *, gzipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.gz" if gzipped else folder / name).write_bytes(
            gzip.compress(content) if gzipped else content
        )


def load_root(compose, root, option="mnist"):
    config, _ = compose(f"dataset={option}", f"dataset.root={root}")
    options = {key: value for key, value in config.dataset.items() if key != "declares"}
    return hydra.utils.instantiate(options, _convert_="all")


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize(("option", "below"), [("mnist", ""), ("mnist", "MNIST/raw"), ("fashion_mnist", "")])
def test_idx_files_pixel_for_pixel(compose, tmp_path, idx_files, gzipped, option, below):
    arrays, files = idx_files
    write(tmp_path / below, files, gzipped=gzipped)
    source = load_root(compose, tmp_path, option)
    mean, std = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}[option]
    for samples, images, labels in ((source.train, *NAMES[:2]), (source.test, *NAMES[2:])):
        expected = (arrays[images][:, None] / 255 - mean) / std
        np.testing.assert_array_equal(samples.x[:, 0], arrays[images])
        np.testing.assert_allclose(source.normalise(samples.x), expected, rtol=1e-5, atol=1e-6)
        assert samples.x.dtype == torch.uint8
        np.testing.assert_array_equal(samples.y, arrays[labels])


def test_torchvisions_folders_are_distinguished(compose, tmp_path, idx_files):
    arrays, files = idx_files
    write(tmp_path / "MNIST/raw", files)
    write(tmp_path / "FashionMNIST/raw", {name: idx_bytes(255 - array) for name, array in arrays.items()})
    np.testing.assert_array_equal(load_root(compose, tmp_path, "fashion_mnist").train.x[:, 0], 255 - arrays[NAMES[0]])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (NAMES[0], lambda c: b"\x00\x00\x0d\x03" + c[4:], "which begins with 0x00000803, got 0x00000d03"),
        (NAMES[1], lambda c: b"\x00\x00\x08\x03" + c[4:], "which begins with 0x00000801, got 0x00000803"),
        (NAMES[0], lambda c: c[:-1], "must hold 12 x 28 x 28 = 9408 bytes of data, as its header says, got 9407"),
        (NAMES[3], lambda c: c + b"\x01", "must hold 5 = 5 bytes of data, as its header says, got more"),
        (NAMES[2], lambda c: c[:10], "ends within its header of 16 bytes"),
        (NAMES[2], lambda c: b"", "which begins with 0x00000803, got 0x"),
        (
            NAMES[3],
            lambda c: idx_bytes(np.zeros(4, np.uint8)),
            "holds 4 labels",
        ),
    ],
)
def test_damaged_idx_files(tmp_path, idx_files, name, damage, message):
    files = idx_files[1]
    write(tmp_path, {**files, name: damage(files[name])})
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3])


@pytest.mark.parametrize("damage", [lambda c: c[:-20], lambda c: b"none" + c, lambda c: c[:20] + b"\xff" * 9 + c[29:]])
def test_damaged_gzip(tmp_path, idx_files, damage):
    write(tmp_path, idx_files[1], gzipped=True)
    file = tmp_path / f"{NAMES[0]}.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=rf"{NAMES[0]}\.gz (cannot be read: |must hold .* bytes of data)"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3])


def test_a_gzip_is_inflated_to_its_headers_size_and_no_further(tmp_path, idx_files, monkeypatch):
    read = []
    inflate = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size=-1: (read.append(size), inflate(file, size))[1])
    write(tmp_path, {**idx_files[1], NAMES[1]: idx_files[1][NAMES[1]] + bytes(10**6)}, gzipped=True)
    with pytest.raises(InputError, match=r"must hold 12 = 12 bytes of data, as its header says, got more"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3])
    assert read == [16, 12 * 28 * 28 + 1, 8, 13]


def test_a_header_of_an_impossible_size(tmp_path, idx_files):
    write(tmp_path, {**idx_files[1], NAMES[0]: bytes([0, 0, 8, 3]) + b"\xff" * 12})
    with pytest.raises(InputError, match=rf"{NAMES[0]} must hold .*, at most {2**32} are read"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3])


def test_idx_files_are_of_one_folder(tmp_path, idx_files):
    write(tmp_path / "MNIST/raw", idx_files[1])
    write(tmp_path, {NAMES[0]: idx_files[1][NAMES[0]]})
    with pytest.raises(InputError, match=f"must hold {NAMES[1]} or"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3])


def test_missing_idx_file(tmp_path):
    with pytest.raises(InputError, match=f"dataset.root={tmp_path} must hold {NAMES[0]} or {NAMES[0]}.gz, itself or"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3])


def test_root_and_path_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match=r"both set; try dataset\.path=null"):
        idx.load(root=str(tmp_path), raw="MNIST/raw", mean=[0.1], std=[0.3], path="somewhere")


def test_the_real_mnist(pytestconfig, compose):
    root = pytestconfig.rootpath.parent / "shared" / "data" / "mnist"
    if not root.is_dir():
        pytest.skip("MNIST is not on this machine")
    source = load_root(compose, root)
    assert (len(source.train.y), len(source.test.y)) == (60_000, 10_000)
    pixels = source.train.x.double() / 255
    # Known of MNIST's training pixels.
    assert pixels.mean().item() == pytest.approx(0.13066, abs=5e-6)
    assert pixels.std().item() == pytest.approx(0.30811, abs=5e-6)
    assert torch.bincount(source.train.y)[:2].tolist() == [5923, 6742]
