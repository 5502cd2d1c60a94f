"""Clients that run in this process, one after another."""

import pickle
from collections.abc import Iterable, Sequence

from flwr.app import Message

from fedresearch.federation.client_app import Clients
from fedresearch.hardware.ordered import OrderedGrid, answer, pickle_reply


class InProcessGrid(OrderedGrid):
    """A Grid that calls the ClientApp directly."""

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        context = self._context(message)
        if isinstance(self._client_app, Clients):
            reply, state = answer(self._client_app, message, context), context.state
        else:  # it may write into its arguments, and later into what it returned
            message, context = pickle.loads(pickle.dumps((message, context), protocol=5))
            reply, state = pickle.loads(
                pickle_reply(message, answer(self._client_app, message, context), context.state)
            )
        if not reply.has_error():
            self._keep(context.node_id, state)
        return reply
