"""The choice between one process and several, from what is known before the first round."""

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from flwr.app import Message, RecordDict
from torch import Tensor
from torch.nn import Embedding, Module
from torch.nn.modules.conv import _ConvNd

from fedresearch.federation.broadcast import Broadcast
from fedresearch.federation.client_app import Clients
from fedresearch.federation.dense_clients import chain_of_clients
from fedresearch.federation.generators import seeded_generators
from fedresearch.federation.stack import StackedReplies
from fedresearch.hardware.cores import num_cores
from fedresearch.hardware.in_process import InProcessGrid
from fedresearch.hardware.ordered import OrderedGrid
from fedresearch.local.state_names import hooked

log = logging.getLogger("fedresearch")

# Measured by CPU time on two cores of an Intel Xeon (torch 2.14; November 2026), the least of several rounds. Steps of
# 10 samples on one thread take 87 us (logistic regression), 178 (mlp), 460 (mlp_2nn), 1,424 (lenet) and 7,467
# (cnn_mcmahan); of 50, lenet's 3,516. The first two constants estimate each to a factor of 2.5. Workers import for 2 s
# and unpickle the clients for 0.4 s. A message of theirs costs 0.27 ms in the main process and half of 0.44 ms in two
# workers; with 9 million parameters 67 and half of 100 ms.
_FLOPS_PER_S = 40e9
_STEP_S = 150e-6
_START_S = 2.5
_MESSAGE_S = 0.5e-3
_BYTE_S = 3e-9

_WORTHWHILE_S = 5  # at least; so that workers still save time where the estimate is twice too long
_SHORT_S = 10  # of training, up to which a run prints nothing about it


class AutoGrid(OrderedGrid):
    """A Grid that chooses when it opens whether clients run in this process or in workers, which give the same bits.

    It chooses workers if they save at least five seconds of the run by an estimate, without timing anything. It prints
    the choice and the reason if training takes more than ten seconds.

    Parameters
    ----------
    client_app : Clients
        The app of every client.
    num_supernodes : int
        Number of clients.

    Attributes
    ----------
    chosen : str
        The option, once the Grid is open.
    """

    def __init__(self, client_app: Clients, num_supernodes: int) -> None:
        self._grid: OrderedGrid = InProcessGrid(client_app, num_supernodes)
        super().__init__(client_app, num_supernodes)
        self._clients, self._num_rounds, self._cohort_size = client_app, 0, 0

    def expect(self, num_rounds: int, cohort_size: int) -> None:
        """Learn how much the clients will train."""
        self._num_rounds, self._cohort_size = num_rounds, cohort_size

    def __enter__(self) -> Self:
        """Choose. A model that fails has been reported by now, or ends the run here as it would in the first round."""
        self.chosen, reason, seconds = choose(self._clients, self._num_rounds, self._cohort_size)
        if seconds > _SHORT_S:
            log.info("hardware=auto: %s, since %s", self.chosen, reason)
            if chain_of_clients(self._clients):
                log.info("hardware=batched would be faster, and its numbers are equal up to rounding")
        if self.chosen == "workers":
            from fedresearch.hardware.workers import WorkerGrid

            self._grid = WorkerGrid(self._clients, self._num_supernodes)
        self._grid.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the resources of the clients."""
        self._grid.__exit__(kind, error, trace)

    @property
    def states(self) -> dict[int, RecordDict]:
        """The clients' nonempty states by node id."""
        return self._grid.states

    @states.setter
    def states(self, states: dict[int, RecordDict]) -> None:
        self._grid.states = states

    def _stack_for(self, clients: Clients, messages: Broadcast) -> StackedReplies:
        return self._grid._stack_for(clients, messages)

    def _fill(self, stack: StackedReplies, clients: Clients, content: RecordDict) -> dict[int, str]:
        return self._grid._fill(stack, clients, content)

    def _answer(self, messages: Sequence[Message]) -> Iterable[Message]:
        return self._grid._answer(messages)


def choose(clients: Clients, num_rounds: int, cohort_size: int) -> tuple[str, str, float]:
    """Return the option, the reason for it, and an estimate of the seconds that training takes on one core.

    Parameters
    ----------
    clients : Clients
        The ClientApp.
    num_rounds : int
        Number of rounds.
    cohort_size : int
        Number of clients in a round; those without samples do not count.
    """
    sizes = [len(rows) for rows in clients.data.train if len(rows)]
    cohort = min(cohort_size, len(sizes))
    messages = num_rounds * cohort
    seconds = messages * _client_s(clients, sum(sizes) / max(1, len(sizes)))
    if hooked(clients.model):
        return "cpu", "the model's gradients have hooks, which copies of it have not", seconds
    at_once = min(num_cores(), cohort)
    if at_once < 2:
        return "cpu", "one client trains in a round" if cohort < 2 else "this run may use one core", seconds
    num_bytes = sum(tensor.nbytes for tensor in clients.model.state_dict().values())
    turns = math.ceil(cohort / at_once)
    saved = seconds * (1 - turns / cohort) - _START_S - messages * (_MESSAGE_S + num_bytes * _BYTE_S)
    estimated = f"training takes about {max(1, float(f'{seconds:.1g}')):,.0f} s on one core"
    if saved < _WORTHWHILE_S:
        return "cpu", f"{estimated}, and workers would save too little", seconds
    return "workers", f"{estimated}, and {at_once} clients can train at once", seconds


def _client_s(clients: Clients, num_examples: float) -> float:
    """Return an estimate of the seconds that a client of average size trains in a round."""
    flops, seconds = 3 * forward_flops(clients), 0.0  # backward is two times forward
    for stage in clients.stages:
        work = clients.work.for_stage(stage)
        batch = min(work.batch_size or num_examples, num_examples)
        epoch = math.ceil(num_examples / batch) if batch else 0
        steps = work.steps if work.steps is not None else (work.epochs or 0) * epoch
        samples = steps * batch if work.steps is not None else (work.epochs or 0) * num_examples
        seconds += steps * _STEP_S + samples * flops / _FLOPS_PER_S
    return seconds


def forward_flops(clients: Clients) -> int:
    """Return about how many floating-point operations the model does for one sample.

    Each parameter of a layer is multiplied and added once for each position of the layer's output: a pixel, or a step
    of a sequence.
    """
    total = 0

    def count(module: Module, _: Any, output: Any) -> None:
        nonlocal total
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor) and output.dim() > 1:
            features = output.shape[1 if isinstance(module, _ConvNd) else -1]
            total += 2 * sum(p.numel() for p in module.parameters(recurse=False)) * output.numel() // features

    model = copy.deepcopy(clients.model).eval()
    for module in model.modules():
        if not isinstance(module, Embedding):
            module.register_forward_hook(count)
    with seeded_generators(0), torch.no_grad():
        first = clients.data.x[:1]
        model(clients.inputs.prepare(torch.cat([first, first])))  # a batch of one has no statistics of its own
    return total // 2
