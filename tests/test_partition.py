"""Who holds what: partitions, validation splits, and the arrays that hold them."""

import pickle
import re
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import torch
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedresearch.data.facts import gather_facts
from fedresearch.data.federated import FederatedData
from fedresearch.data.partition import partition_rows, split_validation
from fedresearch.data.plot import label_distribution_svg, partition_csv
from fedresearch.data.source import Samples, Source
from fedresearch.errors import InputError
from fedresearch.experiment.experiment import Experiment

PARTITIONERS = [
    "continuous",
    "dirichlet",
    "distribution",
    "exponential",
    "grouped_natural_id",
    "id_to_size",
    "iid",
    "inner_dirichlet",
    "linear",
    "natural_id",
    "pathological",
    "pathological_mcmahan",
    "shard",
    "size",
    "square",
]
# All but these share out every row: the sizes of the first are given, the others deal out equal shards.
GIVEN_SIZES = ["inner_dirichlet", "size"]
SHARDS = ["pathological_mcmahan", "shard"]


def rows_of(experiment):
    data = experiment.data
    return [np.concatenate([t, v]) for t, v in zip(data.train, data.validation, strict=True)]


def source_of(experiment):
    from fedresearch.experiment.loading import load_source

    return load_source(experiment.config, experiment.choices, experiment.builder)


@pytest.fixture
def build(compose):
    from fedresearch.experiment.experiment import Experiment

    def build_(*overrides):
        return Experiment(*compose("tracker=none", *overrides))

    return build_


def overrides_for(partitioner):
    natural = partitioner in ("natural_id", "grouped_natural_id")
    dataset = ["dataset=fcube"] if natural else ["dataset=digits"]
    few = ["federation.num_supernodes=5"] if partitioner == "exponential" else []
    return [f"partitioner={partitioner}", *dataset, *few]


def test_every_option_is_in_the_list(pytestconfig):
    options = {path.stem for path in (pytestconfig.rootpath / "conf" / "partitioner").glob("[!_]*.yaml")}
    assert options == {*PARTITIONERS, "file"}  # the file has tests of its own


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_partitions_are_disjoint_cover_and_follow_the_seed(build, partitioner):
    overrides = overrides_for(partitioner)
    first, again, other = (build(*overrides, f"seed={seed}") for seed in (0, 0, 1))
    parts = rows_of(first)
    together = np.concatenate(parts)
    total = len(source_of(first).train.y)
    assert len(np.unique(together)) == len(together)
    if partitioner in GIVEN_SIZES:
        sizes = first.config.partitioner["partition_sizes"]
        assert [len(part) for part in parts] == sizes
    elif partitioner in SHARDS:
        assert [len(part) for part in parts] == [2 * (total // 20)] * 10  # 20 equal shards, the remainder left out
    else:
        assert sorted(together) == list(range(total))
    for part, part_again in zip(parts, rows_of(again), strict=True):
        np.testing.assert_array_equal(part, part_again)

    held = [set(part.tolist()) for part in parts]
    held_other = [set(part.tolist()) for part in rows_of(other)]
    natural = partitioner in ("natural_id", "grouped_natural_id")
    assert (held == held_other) == natural  # the data's own partition does not depend on a seed


def test_fixed_seeds_hold_partition_and_split_over_runs_seeds(build):
    def digests(*overrides):
        data = build(*overrides).data
        return data.partition_sha256(), data.validation_sha256()

    base = digests("partitioner.seed=7", "validation.seed=7")
    assert digests("partitioner.seed=7", "validation.seed=7", "seed=1") == base
    only_partition = digests("partitioner.seed=7", "seed=1")
    assert only_partition[0] == base[0]
    assert only_partition[1] != base[1]
    assert digests("partitioner.seed=8", "validation.seed=7")[0] != base[0]


@pytest.mark.filterwarnings(
    "ignore:Specifying null_placement:FutureWarning"
)  # datasets 4 sorts as pyarrow 25 deprecates
@pytest.mark.parametrize("name", ["iid", "dirichlet", "pathological", "shard"])
def test_the_same_partitions_as_federated_dataset(build, tmp_path, name):
    """FederatedDataset(shuffle=True, seed=42) and a partitioner of seed 42, on the same table."""
    ours = build(
        f"partitioner={name}", "partitioner.seed=42", "validation.fraction=0", "federation.fraction_evaluate=0"
    )
    labels = source_of(ours).train.y.numpy()
    datasets.Dataset.from_dict({"row": np.arange(len(labels)), "label": labels}).to_parquet(tmp_path / "digits.parquet")
    theirs = {
        "iid": lambda: IidPartitioner(10),
        "dirichlet": lambda: DirichletPartitioner(10, "label", 0.5, seed=42),
        "pathological": lambda: PathologicalPartitioner(10, "label", 2, "deterministic", seed=42),
        "shard": lambda: ShardPartitioner(10, "label", num_shards_per_partition=2, seed=42),
    }[name]()
    federated = FederatedDataset(
        dataset="parquet",
        data_files={"train": str(tmp_path / "digits.parquet")},
        cache_dir=str(tmp_path),
        partitioners={"train": theirs},
        seed=42,
    )
    for partition_id, rows in enumerate(rows_of(ours)):
        assert sorted(rows) == sorted(federated.load_partition(partition_id)["row"][:])


def test_mcmahans_pathological_split(build):
    """Sorted by label and cut into 2 x 10 equal shards, a client holds two of them."""
    experiment = build("partitioner=pathological_mcmahan")
    labels = source_of(experiment).train.y.numpy()
    order = np.sort(labels, kind="stable")
    shard_size = len(labels) // 20
    shards = [np.bincount(order[i * shard_size : (i + 1) * shard_size], minlength=10) for i in range(20)]
    for rows in rows_of(experiment):
        held = np.bincount(labels[rows], minlength=10)
        assert any((np.abs(held - a - b) <= 1).all() for i, a in enumerate(shards) for b in shards[i + 1 :]), (
            held
        )  # 1,437 rows do not divide by 20: a shard or two has one row more


@pytest.mark.parametrize(("n", "fraction"), [(5000, 0.2), (7, 0.2), (10, 0.5), (3, 0.1), (100, 0.25)])
@pytest.mark.parametrize("seed", [42, 2**62 + 1])
def test_the_same_validation_split_as_datasets(n, fraction, seed):
    table = datasets.Dataset.from_dict({"row": np.arange(n)})
    theirs = table.train_test_split(test_size=fraction, seed=seed)
    train, validation = split_validation(np.arange(n), fraction, seed)
    assert theirs["train"]["row"][:] == train.tolist()
    assert theirs["test"]["row"][:] == validation.tolist()


@given(n=st.integers(0, 50), fraction=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**63 - 1))
def test_a_validation_split_loses_nothing_and_leaves_something_to_train_on(n, fraction, seed):
    train, validation = split_validation(np.arange(n) + 5, fraction, seed)
    assert sorted([*train, *validation]) == list(range(5, n + 5))
    assert len(train) > 0 or n == 0
    assert len(validation) == 0 or fraction > 0


@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50)
def test_federated_data_hands_out_each_clients_samples_as_views(sizes, order):
    total = sum(t + v for t, v in sizes) + 2
    rows = list(range(total))
    order.shuffle(rows)
    cut = iter(rows)
    train, validation = zip(
        *(
            (
                np.array([next(cut) for _ in range(t)], dtype=np.int64),
                np.array([next(cut) for _ in range(v)], dtype=np.int64),
            )
            for t, v in sizes
        ),
        strict=True,
    )
    samples = Samples(torch.arange(2 * total, dtype=torch.float32).reshape(total, 2), torch.arange(total))
    data = FederatedData.build(Source(samples, samples), train, validation, torch.float64)
    for partition_id, (t, v) in enumerate(zip(train, validation, strict=True)):
        for (x, y), held in ((data.train_samples(partition_id), t), (data.validation_samples(partition_id), v)):
            assert y.tolist() == held.tolist()
            assert x.tolist() == [[2.0 * row, 2.0 * row + 1] for row in held]
            assert x.dtype == torch.float64
            assert x.untyped_storage().data_ptr() == data.x.untyped_storage().data_ptr()


def held(*labels):
    """Return partitions of samples with these labels, one validation sample in each that has any."""
    rows = np.split(np.arange(sum(map(len, labels))), np.cumsum([len(part) for part in labels])[:-1])
    samples = Samples(torch.zeros(sum(map(len, labels)), 1), torch.tensor([y for part in labels for y in part]))
    train, validation = [part[1:] for part in rows], [part[:1] for part in rows]
    return FederatedData.build(Source(samples, samples), train, validation, torch.float32)


def test_the_label_distribution_is_counted_and_drawn():
    data = held([0, 0, 2], [1], [])
    labels = [y.numpy() for y in data.targets()]
    assert partition_csv(data, labels, 3) == (
        "partition_id,num_examples,num_train,num_validation,0,1,2\n0,3,2,1,2,0,1\n1,1,0,1,0,1,0\n2,0,0,0,0,0,0\n"
    )
    assert partition_csv(data, None, 3).splitlines()[1] == "0,3,2,1"
    drawn = ElementTree.fromstring(label_distribution_svg(labels, 3, "a & b"))
    texts = [text.text for text in drawn.findall("{*}text")]
    assert texts[:3] == ["a & b", "partition", "samples"]
    assert texts[3:8] == ["0", "1", "2", "3", "4"]  # samples: 3, rounded up to quarters
    assert texts[8:] == ["0", "1", "2", "0", "1", "2"]  # partitions, then classes
    bars = {path.get("fill"): path.get("d").count("z") for path in drawn.findall("{*}path") if path.get("fill")}
    assert [*bars.values()] == [1, 1, 1]  # who holds a class: client 0, client 1, client 0
    heights = [re.findall(r"v([\d.]+)", path.get("d")) for path in drawn.findall("{*}path") if path.get("fill")]
    assert heights == [["160.0"], ["80.0"], ["80.0"]]  # 320 pixels for 4 samples


def test_the_plot_of_many_clients_shows_the_first_hundred():
    data = held(*([i % 10, 1] for i in range(150)))
    labels = [y.numpy() for y in data.targets()]
    drawn = label_distribution_svg(labels, 10, "title")
    assert "title (first 100 of 150 clients)" in drawn
    assert len(re.findall(r"h-[\d.]+z", drawn)) == sum(len({i % 10, 1}) for i in range(100))
    assert len(partition_csv(data, labels, 10).splitlines()) == 151


@pytest.mark.parametrize(
    ("overrides", "reason", "ways"),
    [
        (
            ["partitioner.min_partition_size=1000"],
            "DirichletPartitioner cannot partition 1437 samples .*: The max number of attempts",
            ["partitioner.min_partition_size=0", "a larger partitioner.alpha", "a smaller federation.num_supernodes"],
        ),
        (
            ["partitioner.self_balancing=true", "partitioner.alpha=1e-3", "partitioner.min_partition_size=0"],
            r"sizes that are not numbers \(NaN\)",
            ["a larger partitioner.alpha"],
        ),
        (
            ["partitioner=inner_dirichlet", "partitioner.alpha=1e-3"],
            "Probabilities contain NaN",
            ["a larger partitioner.alpha", "smaller partitioner.partition_sizes"],
        ),
        (
            ["partitioner=distribution", "partitioner.distribution_array.sigma=1000"],
            "sigma=1000 gives shares outside the range of floats",
            ["partitioner.distribution_array.sigma=2.0"],
        ),
        (
            [
                "partitioner=pathological",
                "partitioner.partition_by=natural_id",
                "dataset=fcube",
                "partitioner.num_classes_per_partition=5",
            ],
            "`num_classes_per_partition`=5 is greater than",
            ["a smaller partitioner.num_classes_per_partition"],
        ),
    ],
)
def test_a_partitioner_that_refuses_is_reported_in_a_line_with_the_keys_that_help(build, overrides, reason, ways):
    with pytest.raises(InputError, match=reason) as raised:
        _ = build(*overrides).data
    assert "\n" not in str(raised.value)
    assert all(way in str(raised.value).split("; try ")[-1] for way in ways)


class Given(Partitioner):
    """Deals the rows that it is given."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = rows

    @property
    def num_partitions(self):
        return len(self.rows)

    def load_partition(self, partition_id):
        return self.dataset.select(self.rows[partition_id])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([0, 1, 2], [2, 1]), r"assigns 2 of them more than once, such as sample 1 to clients 0 and 1"),
        (([0], [3, 4, 3]), r"assigns 1 of them more than once, such as sample 3 to clients 1 and 1"),
    ],
)
def test_a_sample_that_is_dealt_twice_is_refused(rows, message):
    samples = Samples(torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(InputError, match=message):
        partition_rows(samples, Given(*rows), num_supernodes=None, shuffle_seed=None)


# Labels 0, 2, 5 are three classes: partitioned as 0, 1, 2 are.
@pytest.mark.parametrize(
    "partitioner",
    [
        "inner_dirichlet partitioner.partition_sizes=[40,50,60]",
        "distribution federation.num_supernodes=6",
        "pathological federation.num_supernodes=4",
        "dirichlet federation.num_supernodes=4",
        "continuous federation.num_supernodes=4",
        "shard federation.num_supernodes=4",
    ],
)
def test_labels_with_gaps_are_partitioned_as_those_without(build, monkeypatch, partitioner):
    from fedresearch.experiment import experiment as experiment_module

    labels = torch.arange(300) % 3
    parts = []
    for values, num_classes in (([0, 1, 2], 3), ([0, 2, 5], 7)):
        y = torch.tensor(values)[labels]
        source = Source(Samples(torch.zeros(300, 1), y), Samples(torch.zeros(3, 1), torch.tensor(values)))
        experiment = build(*f"partitioner={partitioner} dataset.declares.num_classes={num_classes}".split())
        monkeypatch.setattr(experiment_module, "load_source", lambda *_, source=source: source)
        parts.append(rows_of(experiment))
        assert experiment.facts.classes_untrained == []
        assert set(experiment.data.y.tolist()) == set(values)
    for a, b in zip(*parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_refusal_says_where_labels_are_numbered():
    samples = Samples(torch.zeros(3, 1), torch.tensor([3, 7, 7]))
    with pytest.raises(InputError, match=r"values: \(labels are numbered from 0\) Label: 0 is needed"):
        partition_rows(
            samples, PathologicalPartitioner(2, "label", 2, "deterministic"), num_supernodes=None, shuffle_seed=None
        )


def test_classes_that_no_client_has_are_named_with_their_share_of_the_test_split(build):
    experiment = build("partitioner=pathological", "federation.num_supernodes=4")
    source = source_of(experiment)
    # Client i holds classes i and i + 1, so the last is class 4; each class is split among its owners without rest.
    unheld = int((source.train.y > 4).sum())
    share = float((source.test.y > 4).double().mean())
    facts = experiment.facts
    assert facts.classes_untrained == [5, 6, 7, 8, 9]
    assert (facts.num_unheld, facts.num_train, facts.num_test) == (unheld, 1437, 360)
    assert facts.test_share_untrained == share
    assert [*facts.lines()] == [
        f"no client has {unheld} of the 1437 training samples; no client trains on classes 5, 6, 7, 8, 9, "
        f"{share:.1%} of the test samples"
    ]


def test_samples_that_no_client_has_are_counted(build):
    experiment = build("partitioner=iid", "partitioner.num_partitions=10", "federation.num_supernodes=7")
    # 1,437 = 7 x 144 + 3 x 143, the larger parts first.
    assert [*experiment.facts.lines()] == ["no client has 429 of the 1437 training samples"]
    assert [*build("partitioner=iid").facts.lines()] == []


def dealt(train, test, *rows, dtype=torch.float32):
    """Return the facts of samples ``(x, y)`` of which each client trains on some rows."""
    splits = [
        Samples(torch.tensor([x for x, _ in part], dtype=dtype), torch.tensor([y for _, y in part]))
        for part in (train, test)
    ]
    train_rows = [np.array(part, dtype=np.int64) for part in rows]
    return gather_facts(FederatedData.build(Source(*splits), train_rows, [part[:0] for part in train_rows], dtype))


def test_test_samples_that_equal_samples_of_clients_are_counted():
    train = [([1.0, 2.0], 0), ([1.0, 2.0], 1), ([3.0, 4.0], 1), ([5.0, 6.0], 0)]
    # The first is client 0's twice over; then another target, a swapped input, one that no client has, and client 1's.
    test = [([1.0, 2.0], 0), ([3.0, 4.0], 0), ([2.0, 1.0], 0), ([5.0, 6.0], 0), ([3.0, 4.0], 1), ([1.0, 2.0], 0)]
    facts = dealt(train, test, [0, 1], [2])
    assert facts.num_test_in_train == 3
    assert [*facts.lines()][-1].startswith("3 of the 6 test samples equal samples that clients have")
    assert [*dealt(train, train, [0, 3], [2, 1]).lines()] == [
        "all 4 test samples equal samples that clients have: eval/*, and a choice by it, may not hold for new data"
    ]
    assert dealt(train, test[1:3], [0, 1, 2], []).num_test_in_train == 0


def test_a_class_that_only_the_test_split_has_is_trained_on_by_nobody():
    facts = dealt([([1.0], 0), ([2.0], 3)], [([3.0], 0), ([4.0], 7), ([5.0], 3), ([6.0], 7)], [0], [1])
    assert (facts.classes_untrained, facts.test_share_untrained) == ([7], 0.5)
    assert [*facts.lines()] == ["no client trains on class 7, 50.0% of the test samples"]


def test_the_samples_hash_follows_what_is_held_and_not_by_whom():
    train, test = [([1.0], 0), ([2.0], 1), ([3.0], 1)], [([9.0], 0)]
    base = dealt(train, test, [0, 1], [2]).sha256
    assert dealt(train, test, [2], [1, 0]).sha256 == base
    others = [
        dealt(train, test, [0, 1], []),
        dealt([([1.0], 0), ([2.0], 1), ([3.5], 1)], test, [0, 1], [2]),
        dealt([([1.0], 0), ([2.0], 1), ([3.0], 0)], test, [0, 1], [2]),
        dealt(train, [([9.0], 1)], [0, 1], [2]),
        dealt(train, test, [0, 1], [2], dtype=torch.float64),
    ]
    assert len({base, *(facts.sha256 for facts in others)}) == 6


def test_facts_stay_with_data_that_move(build):
    data = build("partitioner=size").data
    for moved in (pickle.loads(pickle.dumps(data)), data.to("cpu", torch.channels_last)):
        assert gather_facts(moved) == gather_facts(data)


def test_fewer_natural_ids_than_clients(build):
    experiment = build("dataset=fcube", "partitioner=natural_id", "federation.num_supernodes=9")
    with pytest.raises(
        InputError, match=r"makes 4 partitions, got federation.num_supernodes=9; try federation.num_sup"
    ):
        _ = experiment.data


def test_the_first_so_many_natural_ids(build):
    samples = Samples(torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), np.array(["b", "a", "c", "a", "b", "c"]))
    rows = partition_rows(samples, NaturalIdPartitioner("natural_id"), num_supernodes=2, shuffle_seed=None)
    assert [part.tolist() for part in rows] == [[1, 3], [0, 4]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[[0, 5, 9, 12], [], [3, 2]]", [[0, 5, 9, 12], [], [2, 3]]),
        ("[[0, 1], [1, 2]]", r"it assigns 1 of them more than once, such as sample 1 to clients 0 and 1; try another"),
        ("[[0], [1437]]", r"Index 1437 out of range for dataset of size 1437; try another partitioner\.path"),
        (
            "[[0], [-1]]",
            r"partitioner\.path=\S+ must hold a list of rows, which are integers >= 0, for each client, such",
        ),
        (
            '{"0": [1]}',
            r"must hold a list of rows, which are integers >= 0, for each client, such as \[\[0, 5, 9\], \[1",
        ),
        ("[[0, true]]", r"must hold a list of rows"),
        ("[]", r"must hold a list of rows"),
        ("[[0", r"partitioner\.path=\S+ cannot be read: Expecting"),
        (None, r"partitioner\.path=\S+ cannot be read: .*No such file"),
    ],
)
def test_the_rows_of_a_file(compose, tmp_path, content, expected):
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    config, choices = compose("partitioner=file", f"partitioner.path={path}")
    experiment = Experiment(config, choices)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            _ = experiment.data
    else:
        pairs = zip(experiment.data.train, experiment.data.validation, strict=True)
        assert [sorted([*train.tolist(), *validation.tolist()]) for train, validation in pairs] == expected


def test_a_file_of_rows_must_be_named(compose):
    with pytest.raises(InputError, match=r"partitioner=file needs a file with the rows of each client; try"):
        _ = Experiment(*compose("partitioner=file")).data
