"""Datasets of the Hub, from Parquet files with the Hub's own columns; and the cache of decoded arrays."""

import functools
import io
import os
import signal
import struct
import time
import zlib
from pathlib import Path

import datasets
import huggingface_hub
import hydra.utils
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hydra.errors import InstantiationException

from fedresearch.data import hub, text
from fedresearch.data.cache import cached_arrays
from fedresearch.errors import InputError
from tests import warm

# For each option: where the Hub keeps its files, the columns there, channels, side, classes.
IMAGES = {
    "mnist": ("mnist/{}-00000-of-00001.parquet", ("image", "label"), 1, 28, 10),
    "fashion_mnist": ("fashion_mnist/{}-00000-of-00001.parquet", ("image", "label"), 1, 28, 10),
    "cifar10": ("plain_text/{}-00000-of-00001.parquet", ("img", "label"), 3, 32, 10),
    "cifar100": ("cifar100/{}-00000-of-00001.parquet", ("img", "fine_label"), 3, 32, 100),
    "femnist": ("data/{}-00000-of-00001.parquet", ("image", "character"), 1, 28, 62),
}
WRITERS = ["f0000_14", "f0001_41", "f0002_01"]


def draw_split(num_samples, channels, side, num_classes, seed):
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (num_samples, channels, side, side), dtype=np.uint8)
    return pixels, draw.integers(0, num_classes, num_samples)


def write_parquet(file, pixels, labels, columns, num_classes, extra=None):
    """Write images as the Hub holds them: encoded as PNG, with the features in the file's metadata."""
    from PIL import Image

    image, label = columns
    pictures = [Image.fromarray(array.transpose(1, 2, 0).squeeze()) for array in pixels]
    features = {image: datasets.Image(), label: datasets.ClassLabel(num_classes)}
    features |= {name: datasets.Value("string") for name in extra or {}}
    data = {image: pictures, label: labels.tolist(), **(extra or {})}
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).to_parquet(file)


def load_option(compose, option, *overrides):
    config, _ = compose(f"dataset={option}", "partitioner=iid", "model=mlp", *overrides)
    options = {key: value for key, value in config.dataset.items() if key != "declares"}
    try:
        return hydra.utils.instantiate(options, _convert_="all"), config.dataset
    except InstantiationException as error:
        raise error.__cause__ from None


@pytest.mark.parametrize("option", [option for option in IMAGES if option != "femnist"])
def test_images_pixel_for_pixel(compose, tmp_path, option):
    pattern, columns, channels, side, num_classes = IMAGES[option]
    splits = {split: draw_split(n, channels, side, num_classes, n) for split, n in (("train", 9), ("test", 4))}
    for split, (pixels, labels) in splits.items():
        write_parquet(tmp_path / "files" / pattern.format(split), pixels, labels, columns, num_classes)
    for _ in ("decoded", "from the cache"):
        source, options = load_option(
            compose, option, f"dataset.path={tmp_path / 'files'}", f"cache_dir={tmp_path / 'cache'}"
        )
        for samples, (pixels, labels) in zip((source.train, source.test), splits.values(), strict=True):
            np.testing.assert_array_equal(samples.x, pixels)
            mean, std = (np.array(options[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
            inputs = source.normalise(samples.x)
            np.testing.assert_allclose(inputs, (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(samples.y, labels)
            assert (samples.x.dtype, inputs.dtype, samples.y.dtype) == (torch.uint8, torch.float32, torch.int64)
            assert samples.x.is_contiguous()
            assert samples.natural_id is None
        assert list(source.train.x.shape[1:]) == options["declares"]["input_shape"]
        assert options["declares"]["num_classes"] == num_classes


def test_femnist_holds_out_the_same_tenth(compose, tmp_path):
    pattern, columns, channels, side, num_classes = IMAGES["femnist"]
    pixels, labels = draw_split(40, channels, side, num_classes, 0)
    writers = [WRITERS[i % 3] for i in range(40)]
    halves = (slice(0, 25), slice(25, 40))  # the Hub cuts a large split into several files
    for i, half in enumerate(halves):
        file = tmp_path / "files" / pattern.format("train").replace("00000-of-00001", f"0000{i}-of-00002")
        write_parquet(file, pixels[half], labels[half], columns, num_classes, {"writer_id": writers[half]})
    args = (f"dataset.path={tmp_path / 'files'}", f"cache_dir={tmp_path / 'cache'}")
    source, _ = load_option(compose, "femnist", *args)
    again, _ = load_option(compose, "femnist", *args, "seed=1")
    assert (len(source.train.y), len(source.test.y)) == (36, 4)
    assert torch.equal(source.test.x, again.test.x)
    # Every sample is in one of the two, with its own label and writer.
    known = {pixels[i].tobytes(): (labels[i], WRITERS.index(writers[i])) for i in range(40)}
    seen = set()
    for samples in (source.train, source.test):
        for image, y, writer in zip(samples.x.numpy(), samples.y.tolist(), samples.natural_id, strict=True):
            assert known[image.tobytes()] == (y, writer)
            seen.add(image.tobytes())
    assert seen == set(known)
    with pytest.raises(InputError, match=r"dataset\.test_fraction must be in \(0, 1\), got 1; try"):
        load_option(compose, "femnist", *args, "dataset.test_fraction=1")


def test_another_dataset_of_the_hub_is_one_yaml_file(compose, tmp_path, grey):
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "pictures.yaml").write_text(
        "# Someone's pictures\n"
        "defaults: [_hub, _self_]\n"
        "name: someone/pictures\n"
        "mean: [0.1]\n"
        "std: [0.3]\n"
        "declares: {input: image, input_shape: [1, 8, 8], num_classes: 10, columns: [label]}\n"
    )
    overrides = (f"dataset.path={grey['path']}", f"cache_dir={grey['cache_dir']}")
    source, _ = load_option(functools.partial(compose, config_dir=tmp_path / "conf"), "pictures", *overrides)
    np.testing.assert_array_equal(source.test.x, draw_split(2, 1, 8, 10, 2)[0])


def test_folders_of_the_hubs_own_conversion(tmp_path):
    """Below refs/convert/parquet the Hub names folders after splits, and files by number."""
    for split, n in (("train", 5), ("test", 3)):
        pixels, labels = draw_split(n, 1, 28, 10, n)
        write_parquet(tmp_path / "default" / split / "0000.parquet", pixels, labels, ("image", "label"), 10)
    source = hub.load(**GREY, path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert (len(source.train.y), len(source.test.y)) == (5, 3)


GREY = {"name": "someone/pictures", "image": "image", "label": "label", "mean": [0.1], "std": [0.3]}


@pytest.fixture
def grey(tmp_path):
    """A folder with 6 training and 2 test images, and what loads it."""
    folder = tmp_path / "files"
    for split, n in (("train", 6), ("test", 2)):
        write_parquet(folder / f"{split}.parquet", *draw_split(n, 1, 8, 10, n), ("image", "label"), 10)
    return {**GREY, "path": str(folder), "cache_dir": str(tmp_path / "cache")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"path": "/nowhere"},
            r"dataset\.path must be a folder with Parquet files, got /nowhere, which is not a folder",
        ),
        ({"test_split": "valid"}, r"must hold valid\*\.parquet or valid/\*\.parquet, .*are: test\.parquet, train"),
        ({"image": "img"}, r"train\.parquet has no column img; try dataset\.image=COLUMN, one of image, label"),
        ({"label": "fine"}, r"train\.parquet has no column fine; try dataset\.label=COLUMN, one of image, label"),
        ({"natural_id": "who"}, r"has no column who; try dataset\.natural_id=COLUMN, one of image, label"),
        ({"label": "image"}, r"dataset\.label=image must hold class indices"),
        ({"image": "label"}, r"dataset\.image=label must hold encoded images, got int64"),
        ({"mean": [0.1] * 3, "std": [0.3] * 3}, r"entry for each channel, and the images have 1, got dataset\.mean=\["),
        ({"std": [0.3] * 3}, r"have 1, got dataset\.mean=\[0\.1\] dataset\.std=\[0\.3, 0\.3, 0\.3\]"),
    ],
)
def test_what_does_not_fit_is_reported_in_one_line(grey, change, message):
    with pytest.raises(InputError, match=message) as raised:
        hub.load(**{**grey, **change})
    assert "\n" not in str(raised.value)


def test_a_folder_without_parquet_files(tmp_path):
    with pytest.raises(InputError, match=r"must hold train\*\.parquet .* its Parquet files are: none"):
        hub.load(**GREY, path=str(tmp_path), cache_dir=str(tmp_path / "cache"))


def test_a_damaged_parquet_file(grey):
    file = Path(grey["path"]) / "train.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"train\.parquet cannot be read: .*[Pp]arquet"):
        hub.load(**grey)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            [("L", (8, 8)), ("L", (8, 9))],
            r"one size and mode, got 8 x 8 L \(row 0\) and 8 x 9 L \(row 1\); try dataset\.p",
        ),
        ([("L", (8, 8)), ("RGB", (8, 8))], r"got 8 x 8 L \(row 0\) and 8 x 8 RGB \(row 1\); try dataset\.mode=RGB"),
        ([("P", (8, 8)), ("P", (8, 8))], r"grey or RGB image \(modes L, RGB\), got mode P; try dataset\.mode=RGB"),
    ],
)
def test_images_of_other_kinds(grey, kinds, message):
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    pictures = [Image.new(*kind) for kind in kinds]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=features)
    table.to_parquet(Path(grey["path"]) / "train.parquet")
    with pytest.raises(InputError, match=message):
        hub.load(**grey)


def png(pixels, kind="PNG"):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def write_rows(grey, images, labels=None, kind=None):
    """Write a training split of rows as they are."""
    labels = pa.array(range(len(images)) if labels is None else labels)
    kind = kind or pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    pyarrow.parquet.write_table(table, Path(grey["path"]) / "train.parquet")


def whole(content, path=None):
    return {"bytes": content, "path": path}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([whole(png(PIXELS)), whole(None)], r"row 1 of dataset\.image=image must hold an image; a file or an address"),
        ([whole(png(PIXELS)), None], r"row 1 of dataset\.image=image has no value \(null\)"),
        ([whole(None, "FILE")], r"row 0 of dataset\.image=image must hold an image; a file or an address in it is"),
        ([whole(None, "http://127.0.0.1:1/a.png")], r"row 0 of dataset\.image=image must hold an image"),
        ([whole(png(PIXELS, "GIF"))], r"row 0 .* must be an image in one of the formats PNG, JPEG, WEBP, BMP, TIFF"),
        ([whole(png(PIXELS)), whole(png(PIXELS)[:50])], r"row 1 of dataset\.image=image cannot be read as an image: "),
        ([whole(b"")], r"row 0 .* must be an image in one of the formats"),
        ([whole(png(np.zeros((1, 2**24 + 1), np.uint8)))], r"row 0 .* has 16777217 x 1 pixels, more than the 16777216"),
    ],
)
def test_only_images_in_the_data_are_decoded(grey, tmp_path, images, message):
    (tmp_path / "secret.png").write_bytes(png(PIXELS))
    images = [{**row, "path": str(tmp_path / "secret.png")} if row and row["path"] == "FILE" else row for row in images]
    write_rows(grey, images)
    with pytest.raises(InputError, match=message) as raised:
        hub.load(**grey)
    assert "\n" not in str(raised.value)


def test_a_decompression_bomb_is_refused_by_its_header(grey):
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    write_rows(grey, [whole(content)])
    with pytest.raises(InputError, match=r"row 0 of dataset\.image=image cannot be read as an image: .*exceeds limit"):
        hub.load(**grey)


def test_more_images_than_the_machine_has_memory_for(grey, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 300}[name])
    with pytest.raises(InputError, match=r"holds 6 images of 8 x 8 L, which need 0\.0 GB"):  # 5 x 384 bytes
        hub.load(**grey)


@pytest.mark.parametrize(
    ("mode", "kinds", "expected"),
    [
        ("L", ["L", "1", "LA"], 1),
        ("RGB", ["RGB", "L", "P", "RGBA", "LA"], 3),
    ],
)
def test_images_of_several_modes_are_converted(grey, mode, kinds, expected):
    from PIL import Image

    bright = Image.fromarray(np.where(PIXELS % 2, 255, 0).astype(np.uint8))
    buffers = [io.BytesIO() for _ in kinds]
    for kind, buffer in zip(kinds, buffers, strict=True):
        bright.convert(kind).save(buffer, "PNG")
    write_rows(grey, [whole(buffer.getvalue()) for buffer in buffers])
    unit = {**grey, "mean": [0.0] * expected, "std": [1.0] * expected, "test_split": "train", "mode": mode}
    x = hub.load(**unit).train.x.numpy()
    assert x.shape == (len(kinds), expected, 8, 8)
    np.testing.assert_array_equal(x, np.broadcast_to(PIXELS % 2 * 255, x.shape))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_images_as_plain_bytes(grey, kind):
    write_rows(grey, [png(PIXELS)] * 2, kind=kind)
    np.testing.assert_array_equal(hub.load(**grey).train.x, np.broadcast_to(PIXELS, (2, 1, 8, 8)))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2.0, 0.0], [2, 0]),
        ([True, False], [1, 0]),
        (pa.array([3, 1], pa.uint8()).dictionary_encode(), [3, 1]),
        ([1.5, 0.0], r"dataset\.label=label must hold class indices, got 1\.5; try dataset\.label=COLUMN"),
        ([float("nan"), 0.0], r"must hold class indices, got nan; try"),
        (["cat", "dog"], r"must hold class indices, got string; try a different dataset\.label=COLUMN, or number"),
        ([[1], [2]], r"must hold class indices, got list<.*>; try"),
        ([1, None], r"row 1 of dataset\.label=label has no value \(null\)"),
    ],
)
def test_labels_of_several_types(grey, labels, expected):
    write_rows(grey, [whole(png(PIXELS))] * 2, labels)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            hub.load(**grey)
    else:
        assert hub.load(**grey).train.y.tolist() == expected


@pytest.mark.parametrize("change", [{"mean": [33.3]}, {"std": [78.6]}, {"std": [0]}, {"mean": [-0.1]}])
def test_means_and_deviations_are_of_pixels_in_0_to_1(grey, change):
    with pytest.raises(
        InputError, match=r"pixels are scaled to \[0, 1\] before dataset\.mean and dataset\.std.*by 255"
    ):
        hub.load(**{**grey, **change})


def test_a_number_alone_is_the_one_channels(grey):
    alone, listed = (
        hub.load(**{**grey, **given}) for given in ({"mean": 0.1, "std": 0.3}, {"mean": [0.1], "std": [0.3]})
    )
    assert torch.equal(alone.normalise(alone.train.x), listed.normalise(listed.train.x))


def test_a_folder_of_the_datasets_name_is_not_taken_for_the_hub(grey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "pictures").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"dataset\.name=someone/pictures is a local folder.*; try dataset\.path=someone"
    ):
        hub.load(**{**grey, "path": None})


def test_files_and_samples_of_each_split_are_reported(grey, caplog):
    caplog.set_level("INFO", "fedresearch")
    hub.load(**grey)
    folder = grey["path"]
    assert caplog.messages == [
        f"split train: 6 samples of {folder}/train.parquet",
        f"split test: 2 samples of {folder}/test.parquet",
    ]


def test_channels_are_checked_from_the_cache_too(grey):
    hub.load(**grey)
    with pytest.raises(InputError, match="the images have 1"):
        hub.load(**{**grey, "mean": [0.1] * 3, "std": [0.3] * 3})


def test_more_classes_than_declared(compose, tmp_path):
    from fedresearch.experiment.experiment import Experiment

    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", *draw_split(60, 1, 28, 62, 0), ("image", "label"), num_classes=62)
    overrides = ("dataset=mnist", f"dataset.path={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "tracker=none")
    with pytest.raises(InputError, match=r"labels from \d+ to \d+, but dataset\.declares\.num_classes is 10"):
        _ = Experiment(*compose(*overrides)).data


def test_no_network_is_reported_at_once_with_both_ways_out(compose, tmp_path, monkeypatch, capfd):
    """The tests' guard refuses the connection where there is a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(InputError) as raised:
        load_option(compose, "mnist", "dataset.name=fedresearch-tests/absent", f"cache_dir={tmp_path}")
    assert time.monotonic() - start < 15
    assert "\n" not in str(raised.value)
    for way in ("fedresearch-tests/absent", "connect once", "dataset.path=DIR", "dataset.root=DIR"):
        assert way in str(raised.value)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_what_the_hub_gave_once_loads_without_network(tmp_path, monkeypatch):
    pixels, labels = draw_split(6, 1, 8, 10, 0)
    write_parquet(tmp_path / "train.parquet", pixels, labels, ("image", "label"), 10)
    given = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "scratch"))
    asked = []

    def answer(*args, **options):
        asked.append((args, options))
        return given

    options = {**GREY, "test_split": None, "test_fraction": 0.5, "cache_dir": str(tmp_path / "cache")}
    with monkeypatch.context() as online:
        online.setattr(hub, "_is_reachable", lambda name: True)
        online.setattr(datasets, "load_dataset", answer)
        first = hub.load(**options)
    assert asked == [(("someone/pictures", None), {"split": "train", "revision": None})]
    second = hub.load(**options)
    assert torch.equal(first.train.x, second.train.x)
    assert torch.equal(first.test.y, second.test.y)
    with pytest.raises(hub.HubUnreachableError):
        hub.load(**options, revision="another")


def test_changed_files_are_decoded_again(grey):
    hub.load(**grey)
    pixels, labels = draw_split(7, 1, 8, 10, 99)
    write_parquet(Path(grey["path"]) / "train.parquet", pixels, labels, ("image", "label"), 10)
    np.testing.assert_array_equal(hub.load(**grey).train.x, pixels)


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-30], lambda c: c[:400] + bytes([c[400] ^ 1]) + c[401:], lambda c: b""]
)
def test_a_damaged_cache_entry_is_made_again(grey, caplog, damage):
    first = hub.load(**grey)
    (entry,) = Path(grey["cache_dir"]).glob("*-train-*.npz")
    sound = entry.read_bytes()
    entry.write_bytes(damage(sound))
    second = hub.load(**grey)
    assert torch.equal(first.train.x, second.train.x)
    assert "is damaged" in caplog.text
    assert len(entry.read_bytes()) == len(sound)


def test_a_cache_that_cannot_be_written(grey, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache_dir=.*file cannot be written: .*; try cache_dir=DIR"):
        hub.load(**{**grey, "cache_dir": str(tmp_path / "file")})


RACER = """
import sys, time
from pathlib import Path
from fedresearch.data import hub
folder, decode = Path(sys.argv[1]), hub.decode_images

def slow_decode(*args):
    with (folder / "decodes").open("a") as log:
        log.write("x")
    time.sleep(1)
    return decode(*args)

hub.decode_images = slow_decode
(folder / f"ready-{sys.argv[2]}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
source = hub.load(name="someone/pictures", image="image", label="label", mean=[0.1], std=[0.3], test_split=None,
                  test_fraction=0.5, path=str(folder / "files"), cache_dir=str(folder / "cache"))
print(float(source.train.x.double().sum()), float(source.test.x.double().sum()), len(source.train.y))
"""


@pytest.mark.slow
def test_two_processes_decode_once(grey, tmp_path):
    racers = [warm.Command("-c", RACER, tmp_path, i, cwd=tmp_path, env=dict(os.environ)) for i in range(2)]
    while not all((tmp_path / f"ready-{i}").exists() for i in range(2)):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    outputs = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert (tmp_path / "decodes").read_text() == "x"
    expected = hub.load(**{**grey, "test_split": None, "test_fraction": 0.5})
    sums = [float(samples.x.double().sum()) for samples in (expected.train, expected.test)]
    assert outputs == [f"{sums[0]} {sums[1]} 3\n"] * 2


KILLED = """
import os, signal, sys
import numpy as np
from fedresearch.data.cache import cached_arrays

def half(file, **arrays):
    file.write(b"PK half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.savez = half
cached_arrays(sys.argv[1], "set", 1, lambda: {"x": np.arange(5)})
"""


def test_a_killed_process_leaves_nothing_that_is_read(tmp_path):
    killed = warm.python("-c", KILLED, tmp_path, cwd=tmp_path, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    assert [file.suffix for file in tmp_path.iterdir() if file.stat().st_size] == [".tmp"]
    made = cached_arrays(tmp_path, "set", 1, lambda: {"x": np.arange(7)})
    kept = cached_arrays(tmp_path, "set", 1, lambda: pytest.fail("it was kept"))
    for arrays in (made, kept):
        np.testing.assert_array_equal(arrays["x"], range(7))
    assert not list(tmp_path.glob("*.tmp"))


PLAY = 'It was the best of times, it was the worst of times; \'twas the age of "wisdom" [aside] & folly? ' * 3
ROLES = {"PLAY_ROMEO": PLAY + "\u00e9nd~", "PLAY_JULIET": PLAY[7:260], "PLAY_PAGE": PLAY[:85]}


@pytest.fixture
def shakespeare(tmp_path):
    """LEAF's windows of three roles, in the Hub's CSV file."""
    windows = [(role, t[i : i + 80], t[i + 80]) for role, t in ROLES.items() for i in range(len(t) - 80)]
    columns = dict(zip(("character_id", "x", "y"), map(list, zip(*windows, strict=True)), strict=True))
    (tmp_path / "files").mkdir()
    datasets.Dataset.from_dict(columns).to_csv(tmp_path / "files" / "shakespeare.csv")
    return tmp_path


def test_shakespeare_splits_each_role_in_time(compose, shakespeare):
    overrides = (f"dataset.path={shakespeare / 'files'}", f"cache_dir={shakespeare / 'cache'}", "model=char_lstm")
    config, _ = compose("dataset=shakespeare", "partitioner=natural_id", *overrides, "dataset.test_fraction=0.5")
    options = {key: value for key, value in config.dataset.items() if key != "declares"}
    source = hydra.utils.instantiate(options, _convert_="all")
    assert config.dataset["declares"]["num_classes"] == len(text.LETTERS) + 1 == 81
    letters = text.LETTERS + "\x00"

    def written(samples):
        return [
            (sorted(ROLES)[role], "".join(letters[i] for i in x), letters[y])
            for role, x, y in zip(samples.natural_id, samples.x.tolist(), samples.y.tolist(), strict=True)
        ]

    train, test = [], []
    for role, play in ROLES.items():
        known = play.replace("\u00e9", "\x00").replace("~", "\x00")
        windows = [(role, known[i : i + 80], known[i + 80]) for i in range(len(play) - 80)]
        half = max(1, int(0.5 * len(windows)))
        train += windows[:half]
        test += windows[half + 79 :]
    assert written(source.train) == train
    assert written(source.test) == test
    assert {role for role, _, _ in test} == {"PLAY_ROMEO", "PLAY_JULIET"}  # a page's lines are too few
    assert source.train.x.dtype == source.train.y.dtype == torch.int64


def test_leafs_vocabulary():
    # The characters are in the order of their codes.
    assert len(text.LETTERS) == 80
    assert list(text.LETTERS) == sorted(set(text.LETTERS))
    np.testing.assert_array_equal(text.encode("\n !}z~\x7f\u00e9\U0001f600"), [0, 1, 2, 79, 78, 80, 80, 80, 80])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "/nowhere"}, r"must be the folder of shakespeare\.csv, got /nowhere"),
        ({"test_fraction": 1.5}, r"dataset\.test_fraction must be in \(0, 1\), got 1\.5"),
        ({"test_fraction": 0.01}, r"dataset\.test_fraction=0\.01 leaves no test samples: the roles have at most 2\d\d"),
    ],
)
def test_shakespeare_that_does_not_fit(shakespeare, options, message):
    options = {"path": str(shakespeare / "files"), "cache_dir": str(shakespeare / "cache"), **options}
    with pytest.raises(InputError, match=message):
        text.load_shakespeare(name="flwrlabs/shakespeare", **options)


def test_shakespeare_with_windows_of_another_length(tmp_path):
    datasets.Dataset.from_dict({"character_id": ["A"], "x": ["short"], "y": ["e"]}).to_csv(tmp_path / "shakespeare.csv")
    with pytest.raises(InputError, match="column x must hold texts of 80 characters"):
        text.load_shakespeare(name="flwrlabs/shakespeare", path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
