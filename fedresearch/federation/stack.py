"""A round's replies as one block of numbers: a row for each client. Messages are made for whoever reads them."""

import copy
import functools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedresearch.errors import InputError
from fedresearch.federation import flower
from fedresearch.federation.broadcast import LazyMessages
from fedresearch.federation.held_array import num_bytes
from fedresearch.federation.layout import HeldRows, Layout, Rows
from fedresearch.federation.records import ARRAYS, METRICS, array_record, arrays_of, check_arrays, metrics_of, view
from fedresearch.federation.row_sums import add_weighted
from fedresearch.federation.update_sums import UpdateSums, rows_at_once

Arrays = Mapping[str, NDArray[Any]]
Values = Mapping[str, NDArray[Any] | Tensor]


class DifferentReply(InputError):
    """A client sends arrays or numbers of other names or shapes than it must."""


class StackedReplies(LazyMessages):
    """The replies of clients without errors, in partition order. :meth:`put` fills it, then nobody changes it.

    Parameters
    ----------
    layout : Layout
        The places of the model's arrays.
    node_ids : sequence of int
        The clients' nodes.
    held : mapping of dtype to ndarray or Tensor
        Rows for the clients' arrays, ``(n, columns)``: in memory, or on a GPU where they stay.
    message : callable
        Makes the message of a client of its place and its content.
    name : callable
        What an error message calls a client, given its node.

    Attributes
    ----------
    num_rows : int
        The number of rows. A client's row is its place modulo this number.
    sent : dict of str to dict of str to ndarray
        The further records, ``(n, *shape)`` each.
    metrics : dict of str to list
        The clients' metrics.
    saved_bytes : int
        How many bytes of each client's model did not travel, since a channel encoded it.
    errors : sequence of Message
        Flower's errors of the clients that failed, who are not among the replies.
    """

    def __init__(
        self,
        layout: Layout,
        node_ids: Sequence[int],
        held: HeldRows,
        message: Callable[[int, RecordDict], Message],
        name: Callable[[int], str] = "node {}".format,
    ) -> None:
        super().__init__(node_ids)
        self.layout, self.held, self._message, self._name = layout, held, message, name
        first = next(iter(held.values()), None)
        self.num_rows = len(node_ids) if first is None else len(first)
        self.device = first.device if isinstance(first, Tensor) else None
        self._rows: Rows | None = None
        self._num_put = 0
        self.sent: dict[str, dict[str, NDArray[Any]]] = {}
        self.metrics: dict[str, list[Any]] = {}
        self.saved_bytes = 0
        self.errors: Sequence[Message] = ()

    @classmethod
    def of(
        cls,
        replies: Iterable[Message],
        layout: Layout | None = None,
        name: Callable[[int], str] = "node {}".format,
    ) -> "StackedReplies":
        """Return replies as a block.

        Parameters
        ----------
        replies : iterable of Message
            At least one. The first one says which records all have.
        layout : Layout, optional
            The places of their models' arrays; None: those of the first one.
        name : callable
            What an error message calls a client, given its node.

        Raises
        ------
        DifferentReply
            If the records of a reply differ from those of the first one, or its arrays from the layout.
        """
        if isinstance(replies, StackedReplies):
            return replies
        replies = [*replies]
        metadata = [reply.metadata for reply in replies]
        layout = layout or Layout(arrays_of(replies[0].content), frozenset())
        stack = cls(
            layout,
            [each.src_node_id for each in metadata],
            layout.rows(len(replies)),
            lambda place, content: flower.message(metadata[place], content),
            name,
        )
        for place, reply in enumerate(replies):
            records = {key: each for key, each in reply.content.items() if isinstance(each, ArrayRecord)}
            arrays = {key: {n: view(array) for n, array in record.items()} for key, record in records.items()}
            stack.put(place, arrays.pop(ARRAYS), arrays, metrics_of(reply.content))
        return stack

    def put(self, place: int, arrays: Values, sent: Mapping[str, Arrays], metrics: Mapping[str, Any]) -> None:
        """Set what a client sends, its model as arrays or tensors, in the order of the places.

        Raises
        ------
        DifferentReply
            If the names or shapes of its arrays differ from the model's, or its other names from the first client's.
        """
        parts, row = self._parts, place % self.num_rows
        if arrays.keys() != parts.keys():
            self._check(place, arrays)
        for name, array in arrays.items():
            part = parts[name]
            if self.device is None:
                array = _in_memory(array)
            if array.shape != part.shape[1:] or array.dtype != part.dtype:
                self._check(place, arrays)
            part[row] = array
        self.put_rest(place, sent, metrics)

    @functools.cached_property
    def _parts(self) -> dict[str, Any]:
        """The rows of each of the model's arrays, ``(n, *shape)``, for writing."""
        return {
            name: self.held[dtype][:, columns].reshape(self.num_rows, *shape)
            for name, (dtype, columns, shape) in self.layout.places.items()
        }

    def put_rest(self, place: int, sent: Mapping[str, Arrays], metrics: Mapping[str, Any]) -> None:
        """Set what a client sends besides its model, which is in its row."""
        if not self._num_put:
            n = len(self)
            self.metrics = {name: [None] * n for name in metrics}
            self.sent = {
                key: {name: np.empty((n, *array.shape), array.dtype) for name, array in group.items()}
                for key, group in sent.items()
            }
        if metrics.keys() != self.metrics.keys():
            self._check_names("metrics", place, metrics, self.metrics)
        for name, value in metrics.items():
            self.metrics[name][place] = value
        if sent.keys() != self.sent.keys():
            self._check_names("records", place, sent, self.sent)
        for key, group in sent.items():
            self._check_names(f"arrays in {key}", place, group, self.sent[key])
            for name, array in group.items():
                self.sent[key][name][place] = array
        self._count(place, 1)

    def put_rows(self, place: int, rows: Rows) -> None:
        """Set a client's model as a row."""
        for dtype, (row,) in rows.items():
            self.held[dtype][place % self.num_rows] = row

    def put_metrics(self, first: int, metrics: Mapping[str, list[Any]]) -> None:
        """Set the metrics of clients from a place on, whose models are in their rows and who send nothing else."""
        count = 0
        for name, values in metrics.items():
            count = len(values)
            self.metrics.setdefault(name, [None] * len(self))[first : first + count] = values
        self._count(first, count)

    def _count(self, first: int, count: int) -> None:
        """Count clients from a place on of whom all is set."""
        self._num_put += count

    def _check_names(self, what: str, place: int, found: Collection[str], expected: Collection[str]) -> None:
        if different := set(found) ^ set(expected):
            raise DifferentReply(
                f"{self._source(place)} must have the {what} of the round's first reply; different: "
                f"{', '.join(sorted(different))}"
            )

    def _check(self, place: int, arrays: Values) -> None:
        found = {name: _in_memory(array) for name, array in arrays.items()}
        try:
            check_arrays(self._source(place), found, self.layout.places)
        except InputError as error:
            raise DifferentReply(str(error)) from None

    def _source(self, place: int) -> str:
        return f"the reply of {self._name(self.node_ids[place])}"

    @property
    def rows(self) -> Rows:
        """The clients' arrays, ``(n, columns)``; of those on a GPU, a copy that is made once."""
        if self._rows is None:
            self._rows = {dtype: _in_memory(rows) for dtype, rows in self.held.items()}
        return self._rows

    def array(self, name: str) -> NDArray[Any]:
        """Return the clients' arrays of a name, ``(n, *shape)``, for reading only."""
        dtype, columns, shape = self.layout.places[name]
        array = self.rows[dtype][:, columns].reshape(self.num_rows, *shape)
        array.flags.writeable = False
        return array

    def sums(self, origin: ArrayRecord, *, to_mean: bool = True) -> UpdateSums:
        """Return the sums over the updates, given the model that the clients received."""
        sums = UpdateSums(self.layout, origin, self.device, to_mean=to_mean)
        at_once = rows_at_once(self.layout, len(self))
        for start in range(0, len(self), at_once):
            places = slice(start, start + at_once)
            sums.add({dtype: rows[places] for dtype, rows in self.held.items()}, self.rest_is_finite(places))
        return sums

    def mean(self, dtype: np.dtype[Any], shares: Sequence[float]) -> NDArray[Any]:
        """Return the sum of the clients' rows of a dtype times shares."""
        return _in_memory(add_weighted(None, self.held[dtype], shares))

    @property
    def message_bytes(self) -> int:
        """The payload of a client's message in bytes: it is the same for all."""
        arrays = [(name, dtype, shape) for name, (dtype, _, shape) in self.layout.places.items()]
        arrays += [(name, each.dtype, each.shape[1:]) for group in self.sent.values() for name, each in group.items()]
        metrics: Any = {name: values[0] for name, values in self.metrics.items()}  # to make a record takes longer
        in_arrays = sum(len(name) + num_bytes(dtype, shape) for name, dtype, shape in arrays)
        return in_arrays - self.saved_bytes + MetricRecord.count_bytes(metrics)

    def rest_is_finite(self, places: slice) -> NDArray[np.bool_]:
        """Return of each client whether all that it sends besides the parameters is finite."""
        num_parameters = self.layout.num_parameters
        rest = [
            _in_memory(rows[places, num_parameters[dtype] :])
            for dtype, rows in self.held.items()
            if rows.shape[1] > num_parameters[dtype]
        ]
        rest += [array[places] for group in self.sent.values() for array in group.values()]
        found = np.ones(len(range(self.num_rows)[places]), bool)
        for array in rest:
            found &= np.isfinite(array.reshape(len(found), -1)).all(axis=1)
        return found

    def take(self, places: Sequence[int]) -> "StackedReplies":
        """Return the replies at places; a reply may occur twice."""
        if [*places] == [*range(len(self))]:
            return self
        taken = copy.copy(self)
        taken.held = {dtype: rows[places] for dtype, rows in self.held.items()}
        taken._rows = None
        taken.sent = {key: {n: array[places] for n, array in group.items()} for key, group in self.sent.items()}
        taken.metrics = {name: [values[place] for place in places] for name, values in self.metrics.items()}
        taken.node_ids, taken.num_rows = [self.node_ids[place] for place in places], len(places)
        taken._message = lambda place, content: self._message(places[place], content)
        taken._made = {}
        return taken

    def only(self, names: Collection[str]) -> "StackedReplies":
        """Return the replies with some of the model's arrays."""
        fewer = copy.copy(self)
        fewer.layout = copy.copy(self.layout)
        fewer.layout.places = {name: place for name, place in self.layout.places.items() if name in names}
        fewer._made = {}
        return fewer

    def _make(self, place: int) -> Message:
        row = {dtype: _in_memory(rows[place]) for dtype, rows in self.held.items()}
        places = self.layout.places
        model = {name: row[dtype][columns].reshape(shape) for name, (dtype, columns, shape) in places.items()}
        return self._message(place, self._content(place, model))

    def _content(self, place: int, model: Arrays) -> RecordDict:
        """Return what a client sends, given its model."""
        content = RecordDict({ARRAYS: array_record(model, copy=False)})
        for key, group in self.sent.items():
            content[key] = array_record({name: array[place] for name, array in group.items()}, copy=False)
        content[METRICS] = MetricRecord({name: values[place] for name, values in self.metrics.items()})
        return content


class FoldedReplies(StackedReplies):
    """Replies of which only the mean and the sums are kept: each block of clients is added, and then forgotten.

    Blocks in memory are added by a thread, in their order, while the next clients train.

    Parameters
    ----------
    layout, node_ids, held, message, name
        As of ``StackedReplies``. The rows are those of one or more blocks, see ``rows_at_once``: a client's row is
        free again when the block before is added.
    origin : ArrayRecord
        The model that the clients received.
    shares : sequence of float
        The clients' shares in the mean.
    """

    def __init__(
        self,
        layout: Layout,
        node_ids: Sequence[int],
        held: HeldRows,
        message: Callable[[int, RecordDict], Message],
        name: Callable[[int], str],
        origin: ArrayRecord,
        shares: Sequence[float],
    ) -> None:
        super().__init__(layout, node_ids, held, message, name)
        self._at_once = rows_at_once(layout, len(node_ids))
        self._sums, self._shares = UpdateSums(layout, origin, self.device, to_mean=False), shares
        self._means: dict[np.dtype[Any], Any] = dict.fromkeys(self.held)
        self._num_added = self._num_begun = 0
        self._thread = ThreadPoolExecutor(1)
        self._adding: deque[Future[int]] = deque()

    def put(self, place: int, arrays: Values, sent: Mapping[str, Arrays], metrics: Mapping[str, Any]) -> None:
        """Set what the next client sends, once its row is free."""
        while place >= self._num_added + self.num_rows:
            self._wait()
        super().put(place, arrays, sent, metrics)

    def put_rest(self, place: int, sent: Mapping[str, Arrays], metrics: Mapping[str, Any]) -> None:
        """Set what the next client sends besides its model."""
        if sent:
            raise DifferentReply(f"{self._source(place)} sends {', '.join(sent)}, which the strategy does not read")
        super().put_rest(place, sent, metrics)

    def _count(self, first: int, count: int) -> None:
        """Count clients, and begin to add the blocks that are complete."""
        super()._count(first, count)
        while self._num_begun < (stop := min(self._num_begun + self._at_once, len(self))) <= first + count:
            start, self._num_begun = self._num_begun, stop
            if self.device is None:
                self._adding.append(self._thread.submit(self._add, start, stop))
            else:
                self._num_added = self._add(start, stop)

    def _add(self, start: int, stop: int) -> int:
        """Add a block of clients, and return the place after it."""
        places = slice(start % self.num_rows, start % self.num_rows + stop - start)
        rows = {dtype: held[places] for dtype, held in self.held.items()}
        self._sums.add(rows, self.rest_is_finite(places))
        shares = self._shares[start:stop]
        self._means = {dtype: add_weighted(mean, rows[dtype], shares) for dtype, mean in self._means.items()}
        return stop

    def _wait(self) -> None:
        """Wait until the next block is added."""
        self._num_added = self._adding.popleft().result()

    def _wait_for_all(self) -> None:
        while self._adding:
            self._wait()

    def has_row(self, place: int) -> bool:
        """Return whether the client that had the row of a place before is added, once all complete blocks are."""
        self._wait_for_all()
        return place < self._num_added + self.num_rows

    @property
    def rows(self) -> Rows:
        """The rows, for clients whose models are not put, once all complete blocks are added."""
        self._wait_for_all()
        return super().rows

    def sums(self, origin: ArrayRecord, *, to_mean: bool = True) -> UpdateSums:
        """Return the sums over the updates, which are without those of the cosines to the mean."""
        self._wait_for_all()
        self._thread.shutdown()
        return self._sums

    def mean(self, dtype: np.dtype[Any], shares: Sequence[float]) -> NDArray[Any]:
        """Return the mean with the shares with which this was made."""
        self._wait_for_all()
        return _in_memory(self._means[dtype])

    def _make(self, place: int) -> Message:
        raise TypeError("only the mean of the replies is kept")


def _in_memory(values: NDArray[Any] | Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.numpy(force=True) if isinstance(values, Tensor) else values
    return array
