"""The ClientApp."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod

from quickstart.task import Net, load_data
from quickstart.task import test as test_fn
from quickstart.task import train as train_fn

app = ClientApp()
alive = False


@app.lifespan()
def lifespan(context):
    global alive
    alive = True
    yield
    alive = False


@app.train(mods=[arrays_size_mod])
def train(msg: Message, context: Context):
    assert alive
    partition_id = context.node_config["partition-id"]
    if partition_id == context.run_config["raises"]:
        raise ValueError("this client cannot")
    calls = context.state["calls"]["n"] + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"n": calls})
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loader, _ = load_data(partition_id, context.node_config["num-partitions"])
    lr, momentum = msg.content["config"]["lr"], context.run_config["optimizer.momentum"]
    loss = train_fn(model, loader, lr, momentum)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset), "calls": calls})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, loader = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    loss, accuracy = test_fn(model, loader)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


@app.query("greet")
def greet(msg: Message, context: Context):
    return Message(RecordDict({"metrics": MetricRecord({"id": context.node_config["partition-id"]})}), reply_to=msg)
