"""The ServerApp."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    messages = [Message(RecordDict(), node_id, "query.greet") for node_id in grid.get_node_ids()]
    print("clients", [reply.content["metrics"]["id"] for reply in grid.send_and_receive(messages)])
    result = FedAvg(fraction_train=config["fraction-train"]).start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": config["lr"]}),
        num_rounds=config["num-server-rounds"],
    )
    torch.save(result.arrays.to_torch_state_dict(), config["out"])
