"""The clients in this process, one after another."""

import copy
import traceback
from collections.abc import Iterable

import torch
from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedresearch.apps.flower import Run, be_server, client_error, set_message_id

# Node 1 is the server, as on a SuperLink.
_FIRST_NODE_ID = 2


class InProcessGrid(Grid):
    """A Grid that calls the ClientApp directly: node ids, messages and replies all in partition order.

    Everything runs on one torch thread, so that sums are formed in one order on any number of cores.

    Parameters
    ----------
    client_app : ClientApp
        What every client runs.
    num_supernodes : int
        Number of clients; their contexts are made when they are first used.
    """

    def __init__(self, client_app: ClientApp, num_supernodes: int) -> None:
        torch.set_num_threads(1)
        self._client_app = client_app
        self._num_supernodes = num_supernodes
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}
        self._num_messages = 0
        self._run: Run | None = None
        be_server(run_id=1)

    def set_run(self, run: Run) -> None:
        """Keep the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run."""
        assert self._run is not None, "set_run comes first"
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids in partition order."""
        return range(_FIRST_NODE_ID, _FIRST_NODE_ID + self._num_supernodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the addressed clients work, one after another, and return the messages' ids."""
        message_ids = []
        for message in messages:
            message_ids.append(self._number(message))
            self._replies[message_ids[-1]] = self._reply(message)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages, in the messages' order."""
        return [self._replies.pop(message_id) for message_id in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull in one; there is nothing to wait for."""
        return self.pull_messages(self.push_messages(messages))

    def try_out(self, app: ClientApp, message: Message, context: Context) -> None:
        """Let an app answer a message as its clients would here, and keep nothing of it."""
        app(message, context)

    def _number(self, message: Message) -> str:
        self._num_messages += 1
        set_message_id(message, str(self._num_messages))
        return str(self._num_messages)

    def _context(self, message: Message) -> Context:
        node_id = message.metadata.dst_node_id
        if node_id not in self._contexts:
            node_config: UserConfig = {"partition-id": node_id - _FIRST_NODE_ID, "num-partitions": self._num_supernodes}
            self._contexts[node_id] = Context(message.metadata.run_id, node_id, node_config, RecordDict(), {})
        return self._contexts[node_id]

    def _reply(self, message: Message) -> Message:
        # The messages of a round share one content, and a failed client's state is as it was before: copies of both.
        # Array payloads are immutable bytes, which a deep copy shares.
        context = copy.deepcopy(self._context(message))
        try:
            reply = self._client_app(copy.deepcopy(message), context)
        except Exception:
            return client_error(traceback.format_exc(), reply_to=message)
        self._contexts[context.node_id] = context
        return reply
