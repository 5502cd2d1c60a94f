"""A round's replies as one block of numbers: a row for each client. Messages are made for whoever reads them."""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedresearch.errors import InputError
from fedresearch.federation import flower
from fedresearch.federation.held_array import HeldArray
from fedresearch.federation.records import ARRAYS, METRICS, arrays_of, bytes_of, check_arrays, metrics_of, view
from fedresearch.local.state_names import Names

Arrays = Mapping[str, NDArray[Any]]

Rows = dict[np.dtype[Any], NDArray[Any]]


class DifferentReply(InputError):
    """A client sends arrays or numbers of other names or shapes than it must."""


class Place(NamedTuple):
    """Where an array is in a row."""

    dtype: np.dtype[Any]
    columns: slice
    shape: tuple[int, ...]


class Layout:
    """The places of a model's arrays: a row for each dtype, with the parameters before all else.

    Parameters
    ----------
    arrays : ArrayRecord
        The model.
    parameters : set of str
        The names of those arrays that are parameters.

    Attributes
    ----------
    places : dict of str to Place
        The places by name, in the model's order.
    num_columns, num_parameters : dict of dtype to int
        The length of a row, and how many of its first numbers are parameters.
    """

    def __init__(self, arrays: ArrayRecord, parameters: Names) -> None:
        places: dict[str, Place] = {}
        self.num_columns: dict[np.dtype[Any], int] = {}
        self.num_parameters: dict[np.dtype[Any], int] = {}
        for name in sorted(arrays, key=lambda name: name not in parameters):
            dtype, shape = np.dtype(arrays[name].dtype), tuple(arrays[name].shape)
            start = self.num_columns.get(dtype, 0)
            stop = self.num_columns[dtype] = start + int(np.prod(shape, dtype=int))
            places[name] = Place(dtype, slice(start, stop), shape)
            self.num_parameters[dtype] = stop if name in parameters else self.num_parameters.get(dtype, 0)
        self.places = {name: places[name] for name in arrays}

    def rows(self, num_rows: int) -> Rows:
        """Return rows without values."""
        return {dtype: np.empty((num_rows, columns), dtype) for dtype, columns in self.num_columns.items()}

    def row(self, arrays: ArrayRecord) -> Rows:
        """Return a model as one row."""
        rows = self.rows(1)
        for name, (dtype, columns, _) in self.places.items():
            rows[dtype][0, columns] = view(arrays[name]).ravel()
        return rows


class StackedReplies(Sequence[Message]):
    """The replies of clients without errors, in partition order. :meth:`put` fills it, then nobody changes it.

    Parameters
    ----------
    layout : Layout
        The places of the model's arrays.
    node_ids : sequence of int
        The clients' nodes.
    message : callable
        Makes the message of a client of its place and its content.
    name : callable
        What an error message calls a client, given its node.

    Attributes
    ----------
    rows : dict of dtype to ndarray
        The clients' arrays, ``(n, columns)``.
    sent : dict of str to dict of str to ndarray
        The further records, ``(n, *shape)`` each.
    metrics : dict of str to list
        The clients' metrics.
    """

    def __init__(
        self,
        layout: Layout,
        node_ids: Sequence[int],
        message: Callable[[int, RecordDict], Message],
        name: Callable[[int], str] = "node {}".format,
    ) -> None:
        self.layout, self.node_ids, self._message, self._name = layout, node_ids, message, name
        self.rows = layout.rows(len(node_ids))
        self.sent: dict[str, dict[str, NDArray[Any]]] = {}
        self.metrics: dict[str, list[Any]] = {}
        self._made: dict[int, Message] = {}

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
        stack = cls(
            layout or Layout(arrays_of(replies[0].content), frozenset()),
            [each.src_node_id for each in metadata],
            lambda place, content: flower.message(metadata[place], content),
            name,
        )
        for place, reply in enumerate(replies):
            records = {key: each for key, each in reply.content.items() if isinstance(each, ArrayRecord)}
            arrays = {key: {n: view(array) for n, array in record.items()} for key, record in records.items()}
            stack.put(place, arrays.pop(ARRAYS), arrays, metrics_of(reply.content))
        return stack

    def put(self, place: int, arrays: Arrays, sent: Mapping[str, Arrays], metrics: Mapping[str, Any]) -> None:
        """Set what a client sends; first that of place 0.

        Raises
        ------
        DifferentReply
            If the names or shapes of its arrays differ from the model's, or its other names from the first client's.
        """
        places = self.layout.places
        if arrays.keys() != places.keys():
            self._check(place, arrays)
        for name, array in arrays.items():
            dtype, columns, shape = places[name]
            if array.shape != shape or array.dtype != dtype:
                self._check(place, arrays)
            self.rows[dtype][place, columns] = array.ravel()
        if not place:
            n = len(self)
            self.metrics = {name: [None] * n for name in metrics}
            self.sent = {
                key: {name: np.empty((n, *array.shape), array.dtype) for name, array in group.items()}
                for key, group in sent.items()
            }
        self._check_names("metrics", place, metrics, self.metrics)
        for name, value in metrics.items():
            self.metrics[name][place] = value
        self._check_names("records", place, sent, self.sent)
        for key, group in sent.items():
            self._check_names(f"arrays in {key}", place, group, self.sent[key])
            for name, array in group.items():
                self.sent[key][name][place] = array

    def _check_names(self, what: str, place: int, found: Collection[str], expected: Collection[str]) -> None:
        if different := set(found) ^ set(expected):
            raise DifferentReply(
                f"{self._source(place)} must have the {what} of the round's first reply; different: "
                f"{', '.join(sorted(different))}"
            )

    def _check(self, place: int, arrays: Arrays) -> None:
        try:
            check_arrays(self._source(place), arrays, self.layout.places)
        except InputError as error:
            raise DifferentReply(str(error)) from None

    def _source(self, place: int) -> str:
        return f"the reply of {self._name(self.node_ids[place])}"

    def array(self, name: str) -> NDArray[Any]:
        """Return the clients' arrays of a name, ``(n, *shape)``, for reading only."""
        dtype, columns, shape = self.layout.places[name]
        array = self.rows[dtype][:, columns].reshape(len(self), *shape)
        array.flags.writeable = False
        return array

    @property
    def message_bytes(self) -> int:
        """The payload of a client's message in bytes: it is the same for all."""
        return bytes_of([self[0]])[0]

    def take(self, places: Sequence[int]) -> "StackedReplies":
        """Return the replies at places; a reply may occur twice."""
        if [*places] == [*range(len(self))]:
            return self
        taken = copy.copy(self)
        taken.rows = {dtype: rows[places] for dtype, rows in self.rows.items()}
        taken.sent = {key: {n: array[places] for n, array in group.items()} for key, group in self.sent.items()}
        taken.metrics = {name: [values[place] for place in places] for name, values in self.metrics.items()}
        taken.node_ids = [self.node_ids[place] for place in places]
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

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        place = range(len(self))[place]
        if place not in self._made:
            content = RecordDict({ARRAYS: _held({name: self.array(name)[place] for name in self.layout.places})})
            for key, group in self.sent.items():
                content[key] = _held({name: array[place] for name, array in group.items()})
            content[METRICS] = MetricRecord({name: values[place] for name, values in self.metrics.items()})
            self._made[place] = self._message(place, content)
        return self._made[place]


def _held(arrays: Arrays) -> ArrayRecord:
    """Return a record of rows' parts, which are not copied."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = HeldArray(array, copy=False)
    return record
