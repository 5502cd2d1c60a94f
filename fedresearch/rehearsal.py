"""One step of one client before the run, so that what cannot work is told before it costs anything."""

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict

from fedresearch.apps.client_app import Clients
from fedresearch.building import one_line
from fedresearch.data.federated import FederatedData
from fedresearch.local.objective import EVALUATION_BATCH, evaluate


class CannotTakePart(Exception):
    """A client cannot do its part; ``doing`` says which."""

    def __init__(self, doing: str, error: Exception, hint: str = "") -> None:
        super().__init__(one_line(error) + hint)
        self.doing = doing


def rehearse(
    message: Message,
    try_out: Callable[[Clients, Message, Context], None],
    clients_on: Callable[[FederatedData], Clients],
    training_data: FederatedData,
    data: FederatedData,
    batch_size: int,
) -> None:
    """Let a client answer a message on two samples, and on one where some batch is one; nothing of it is kept.

    Parameters
    ----------
    message : Message
        The first that the server sends.
    try_out : callable
        Lets an app answer a message as clients will.
    clients_on : callable
        Makes clients that take one step, on given data.
    training_data, data : FederatedData
        What the clients train on, and validate on.
    batch_size : int
        Samples in a batch; 0: all of a client's.

    Raises
    ------
    CannotTakePart
        If a client fails.
    """
    sizes = [len(rows) for rows in training_data.train]
    alone = [i for i, size in enumerate(sizes) if size == 1 or (batch_size and size % batch_size == 1)]
    for num_samples, partition_id in [(2, sizes.index(max(sizes))), *((1, i) for i in alone[:1])]:
        clients = clients_on(training_data.sample(partition_id, num_samples))
        try:
            try_out(clients, message, Context(1, 2, {"partition-id": 0}, RecordDict(), {}))
        except Exception as error:
            hint = f" (the last batch of partitions {alone} is one sample; try another local.batch_size)"
            raise CannotTakePart("train", error, hint if num_samples == 1 else "") from error
    alone = [i for i, rows in enumerate(data.validation) if len(rows) % EVALUATION_BATCH == 1]
    if alone:
        x, y = data.validation_samples(alone[0])
        try:
            evaluate(clients.model, x[:1], y[:1])
        except Exception as error:
            hint = f" (partitions {alone} validate on a batch of one sample; try another validation.fraction)"
            raise CannotTakePart("be evaluated", error, hint) from error
