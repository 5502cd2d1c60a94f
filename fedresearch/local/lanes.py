"""Lanes in which clients train, one after another."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Clients that begin or end at the same step: their numbers, also as a tensor, and their lanes, ``(n,)``."""

    clients: list[int]
    rows: Tensor
    lanes: Tensor


class Lanes:
    """Who trains when in which lane: the longest clients first, each in the lane with the fewest steps so far.

    Parameters
    ----------
    lengths : sequence of int
        The clients' numbers of steps.
    num_lanes : int
        Number of lanes.
    device : device
        The device of the groups' tensors.

    Attributes
    ----------
    places : list of (int, int)
        Each client's first step and lane.
    num_steps : int
        Steps of the longest lane.
    begins, ends : dict of int to Group
        The clients that begin with a step, and that end with it.
    """

    def __init__(self, lengths: Sequence[int], num_lanes: int, device: torch.device) -> None:
        self.num_lanes, self.places = num_lanes, [(0, 0)] * len(lengths)
        begins: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        lanes = [(0, lane) for lane in range(num_lanes)]
        for client in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            first, lane = self.places[client] = lanes[0]
            after = first + lengths[client]
            heapq.heapreplace(lanes, (after, lane))
            begins.setdefault(first, []).append(client)
            ends.setdefault(after - 1, []).append(client)
        self.num_steps = max(lanes)[0]
        self.begins, self.ends = self._groups(begins, device), self._groups(ends, device)

    def _groups(self, clients: dict[int, list[int]], device: torch.device) -> dict[int, Group]:
        """Return the groups, whose tensors are made at once."""
        flat = [client for each in clients.values() for client in each]
        both = torch.tensor([flat, [self.places[client][1] for client in flat]]).to(device)
        parts = both.split([len(each) for each in clients.values()], dim=1)
        return {step: Group(each, *part) for (step, each), part in zip(clients.items(), parts, strict=True)}


class Column:
    """One value of each client.

    Parameters
    ----------
    values : sequence of Tensor or float
        The values, of one shape. Numbers become tensors.
    like : Tensor
        Says of which dtype, and on which device.

    Attributes
    ----------
    axis : int or None
        None: all clients share one value; 0: each has its own.
    first : Tensor
        The shared value, or that of the first client.
    """

    def __init__(self, values: Sequence[Tensor | float], like: Tensor) -> None:
        one = values[0]
        is_shared = all(each is one or (not torch.is_tensor(each) and each == one) for each in values)
        self.axis = None if is_shared else 0
        self._values = [
            each if isinstance(each, Tensor) else torch.tensor(each, dtype=like.dtype, device=like.device)
            for each in (values[:1] if is_shared else values)
        ]
        self.first = self._values[0]

    def lanes(self, num_lanes: int) -> Tensor:
        """Return a tensor for the values of lanes, ``(num_lanes, ...)``."""
        return self.first.new_zeros((num_lanes, *self.first.shape))

    def put(self, group: Group, lanes: Tensor) -> None:
        """Put clients' values into their lanes."""
        if self.axis is None:
            values = self.first.expand(len(group.clients), *self.first.shape)
        else:
            values = torch.stack([self._values[client] for client in group.clients])
        lanes.index_copy_(0, group.lanes, values)
