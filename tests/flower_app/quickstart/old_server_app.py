"""The ServerApp in Flower's old interface."""

import torch
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from quickstart.task import Net


class Saving(FedAvg):
    def __init__(self, out, **options):
        super().__init__(**options)
        self.out = out

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        arrays = parameters_to_ndarrays(parameters)
        torch.save({str(i): torch.tensor(a) for i, a in enumerate(arrays)}, self.out)
        return parameters, metrics


def server_fn(context):
    initial = ndarrays_to_parameters([a.numpy() for a in Net().state_dict().values()])
    strategy = Saving(context.run_config["out"], fraction_evaluate=0.0, initial_parameters=initial)
    return ServerAppComponents(
        strategy=strategy, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    )


app = ServerApp(server_fn=server_fn)
