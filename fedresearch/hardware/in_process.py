"""Clients that run in this process, one after another."""

import pickle
import traceback
from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict

from fedresearch.federation.client_app import Clients, put_result
from fedresearch.federation.stack import DifferentReply, FoldedReplies, StackedReplies
from fedresearch.hardware.ordered import OrderedGrid, answer, pickle_reply


class InProcessGrid(OrderedGrid):
    """A Grid that calls the ClientApp directly."""

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        return [self._reply(message) for message in messages]

    def _fill(self, stack: StackedReplies, clients: Clients, content: RecordDict) -> dict[int, str]:
        failed, cohort = {}, [*map(self._client, stack.node_ids)]
        results = clients.train_in_turn(content, cohort)
        for place, client in enumerate(cohort):
            try:
                state = put_result(client, next(results), stack, place)
            except DifferentReply:
                raise
            except (Exception, SystemExit):
                failed[place] = traceback.format_exc()
                if isinstance(stack, FoldedReplies):  # then a failure ends the run
                    break
                results = clients.train_in_turn(content, cohort[place + 1 :])  # an error ends a generator
            else:
                if state:
                    self._keep_all(state)
        return failed

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
