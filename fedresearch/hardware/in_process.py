"""Clients that run in this process, one after another."""

import pickle
import traceback
from collections.abc import Iterable, Sequence

from flwr.app import Message

from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.client_app import Clients, put_results
from fedresearch.federation.flower import client_error
from fedresearch.federation.stack import DifferentReply, FoldedReplies
from fedresearch.hardware.ordered import OrderedGrid, answer, pickle_reply


class InProcessGrid(OrderedGrid):
    """A Grid that calls the ClientApp directly."""

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        return [self._reply(message) for message in messages]

    def _train(self, clients: Clients, messages: Broadcast) -> Iterable[Message]:
        stack = self._stack_for(clients, messages, folds=True)
        cohort = [*map(self._client, messages.node_ids)]
        results = clients.train_in_turn(messages.content, cohort)
        for place, client in enumerate(cohort):
            try:
                states = put_results([client], [next(results)], stack, place)
            except DifferentReply:
                raise
            except (Exception, SystemExit):
                error = client_error(traceback.format_exc(), reply_to=messages[place])
                if isinstance(stack, FoldedReplies):  # then a failure ends the run
                    return [error]
                return [*stack[:place], error, *map(self._reply, messages[place + 1 :])]
            self._keep_all(states)
        return stack

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
