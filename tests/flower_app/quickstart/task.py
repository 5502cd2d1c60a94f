"""The model, the data and the training."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def forward(self, x):
        return self.layers(x)


def load_data(partition_id, num_partitions):
    generator = torch.Generator().manual_seed(partition_id)
    x = torch.randn(60 + 10 * partition_id, 8, generator=generator)
    data = TensorDataset(x, (x[:, :3] + 0.1 * partition_id / num_partitions).argmax(1))
    return DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=64)


def train(net, loader, lr, momentum):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    net.train()
    total = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def test(net, loader):
    net.eval()
    loss = correct = 0
    with torch.no_grad():
        for x, y in loader:
            loss += nn.functional.cross_entropy(net(x), y).item()
            correct += (net(x).argmax(1) == y).sum().item()
    return loss / len(loader), correct / len(loader.dataset)
