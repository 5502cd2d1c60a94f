"""The ClientApp in Flower's old interface."""

import torch
from flwr.client import ClientApp, NumPyClient

from quickstart.task import Net, load_data, train


class Client(NumPyClient):
    def __init__(self, partition_id, num_partitions, config):
        self.net, self.config = Net(), config
        self.loader, _ = load_data(partition_id, num_partitions)

    def fit(self, parameters, config):
        names = self.net.state_dict()
        self.net.load_state_dict({n: torch.tensor(a) for n, a in zip(names, parameters, strict=True)})
        train(self.net, self.loader, self.config["lr"], self.config["optimizer.momentum"])
        return [a.numpy() for a in self.net.state_dict().values()], len(self.loader.dataset), {}


def client_fn(context):
    node = context.node_config
    return Client(node["partition-id"], node["num-partitions"], context.run_config).to_client()


app = ClientApp(client_fn=client_fn)
