"""``experiment=flower_tutorial`` against the tutorial's own code, re-done here, on a fixture of CIFAR-10's shape."""

import datasets
import numpy as np
import pytest
import torch
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import IidPartitioner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

NUM_TRAIN, NUM_TEST = 400, 60


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """A folder as the Hub lays CIFAR-10 out, with random images that carry their class in their brightness."""
    folder = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    (folder / "plain_text").mkdir()
    for split, n in {"train": NUM_TRAIN, "test": NUM_TEST}.items():
        labels = rng.integers(0, 10, n)
        images = (rng.integers(0, 80, (n, 32, 32, 3)) + labels[:, None, None, None] * 17).astype(np.uint8)
        table = datasets.Dataset.from_dict({"img": list(images), "label": labels}, features=features)
        table.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def overrides(cifar10, tmp_path):
    return ["experiment=flower_tutorial", f"dataset.path={cifar10}", f"cache_dir={tmp_path}"]


def test_its_numbers(compose):
    config, choices = compose("experiment=flower_tutorial")
    assert config.federation.num_supernodes == 10
    assert config.federation.num_rounds == 3
    assert config.federation.fraction_train == 0.5
    assert config.federation.fraction_evaluate == 1.0
    assert config.local.epochs == 1
    assert config.local.batch_size == 32
    assert config.optimizer["lr"] == 0.01
    assert config.dataset["mean"] == config.dataset["std"] == [0.5, 0.5, 0.5]
    assert config.validation.fraction == 0.2
    assert config.validation.seed == config.partitioner["seed"] == 42
    assert {choices[g] for g in ("dataset", "partitioner", "model", "optimizer", "strategy")} == {
        *("cifar10", "iid", "lenet", "adam", "fedavg")
    }


def test_its_overrides(compose):
    config, _ = compose("experiment=flower_tutorial", "federation.num_rounds=5", "local.epochs=3")
    assert (config.federation.num_rounds, config.local.epochs) == (5, 3)


def tutorial_loaders(cifar10, partition_id):
    """The tutorial's load_data, from the folder and not from the Hub."""
    federated = FederatedDataset(
        dataset="parquet",
        data_files={"train": str(cifar10 / "plain_text" / "train-*.parquet")},
        partitioners={"train": IidPartitioner(num_partitions=10)},
    )
    halves = federated.load_partition(partition_id).train_test_split(test_size=0.2, seed=42)
    transforms = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])

    def apply_transforms(batch):
        batch["img"] = [transforms(image) for image in batch["img"]]
        return batch

    halves = halves.with_transform(apply_transforms)
    return DataLoader(halves["train"], batch_size=32), DataLoader(halves["test"], batch_size=32)


class Net(nn.Module):
    """The tutorial's model."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


@pytest.mark.slow
def test_its_run(run, overrides, cifar10):
    """Same partitions, splits, pixels and model; then three rounds, re-done with the tutorial's training function."""
    result = run(*overrides)
    experiment, data = result.experiment, result.experiment.data
    assert [row["clients/sampled"] for row in result.rows] == [5, 5, 5]
    assert [row["clients/evaluated"] for row in result.rows] == [10, 10, 10]

    loaders = [tutorial_loaders(cifar10, i) for i in range(10)]
    for i, (train, test) in enumerate(loaders):
        for (x, y), loader in ((data.train_samples(i), train), (data.validation_samples(i), test)):
            batches = list(loader)
            assert torch.equal(y, torch.cat([b["label"] for b in batches]))
            torch.testing.assert_close(data.prepare(x), torch.cat([b["img"] for b in batches]), rtol=0, atol=1e-6)

    from fedresearch.federation.sampling import Sampling, uniform
    from fedresearch.seeding import derive_seed

    sampling = Sampling(uniform, [1] * 10, 5, 0, "train-sampling")
    net = Net()
    arrays = {name: torch.from_numpy(a.numpy()) for name, a in experiment.initial_arrays.items()}
    for server_round, row in enumerate(result.rows, start=1):
        states, losses, sizes = [], [], []
        for i in sorted(sampling(server_round)):
            net.load_state_dict(arrays)
            x, y = data.train_samples(i)
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
            net.train()
            running, batches = 0.0, 0
            order = torch.Generator().manual_seed(derive_seed(0, "batches", server_round, i))
            x = data.prepare(x).contiguous()  # as the tutorial's, whose net takes no other
            for batch in torch.randperm(len(y), generator=order).split(32):
                optimizer.zero_grad()
                loss = nn.CrossEntropyLoss()(net(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
                running += loss.item()
                batches += 1
            states.append({k: v.clone() for k, v in net.state_dict().items()})
            losses.append(running / batches)
            sizes.append(len(y))
        shares = np.array(sizes) / sum(sizes)
        arrays = {k: sum(s[k] * p for s, p in zip(states, shares, strict=True)) for k in states[0]}
        assert row["train/loss"] == pytest.approx(np.average(losses, weights=sizes), abs=1e-4)

        net.load_state_dict(arrays)
        net.eval()
        with torch.no_grad():
            evaluations = []
            for i in range(10):
                x, y = data.validation_samples(i)
                outputs = net(data.prepare(x).contiguous())
                evaluations.append((F.cross_entropy(outputs, y).item(), (outputs.argmax(1) == y).float().mean().item()))
        assert row["clients/loss"] == pytest.approx(np.mean([e[0] for e in evaluations]), abs=1e-3)
        assert row["clients/accuracy"] == pytest.approx(np.mean([e[1] for e in evaluations]), abs=0.02)
    for name, tensor in arrays.items():
        np.testing.assert_allclose(result.arrays[name], tensor.numpy(), rtol=0, atol=1e-4)
