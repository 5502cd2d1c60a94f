"""Clients that run on a Ray cluster of one machine or many, in actors of our own."""

import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from flwr.app import RecordDict, UserConfig
from flwr.clientapp import ClientApp

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
)  # Ray's future default, about which it warns until then

import ray
from ray.exceptions import ObjectLostError, RayActorError

from fedresearch.errors import InputError
from fedresearch.federation import flower
from fedresearch.federation.client_app import Clients
from fedresearch.hardware.ordered import answer
from fedresearch.hardware.own_ray import own_cluster
from fedresearch.hardware.pool import Answer, PoolGrid, Train, Worker, WorkerDied, layout_of, train
from fedresearch.hardware.threads import be_deterministic, limit_threads


class RayGrid(PoolGrid):
    """A Grid whose clients run on actors, as many as the cluster has room for.

    The ClientApp is put into the object store once, and so are each round's global arrays. The clients of a lost node
    run again elsewhere. New nodes are used as they join.

    Parameters
    ----------
    client_app : ClientApp
        The app of every client; it must be picklable, and its code must be installed on every node.
    num_supernodes : int
        Number of clients.
    address : str or None
        The cluster's address, as for ``ray.init``; None: a private cluster on this machine for this run.
    num_cpus, num_gpus : float
        The resources of an actor; with a share of a GPU, its clients train there.
    run_config : mapping, optional
        The clients' ``context.run_config``.

    Raises
    ------
    InputError
        On entry, if the cluster cannot be reached or has too few resources for an actor.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        run_config: UserConfig | None = None,
    ) -> None:
        super().__init__(client_app, num_supernodes, run_config)
        self._address, self._num_cpus, self._num_gpus = address, num_cpus, num_gpus
        self._starting: list[_Actor] = []
        self._app: ray.ObjectRef[ClientApp] | None = None

    def __enter__(self) -> Self:
        """Connect, and start the actors, which prepare while this process continues."""
        with ExitStack() as stack:
            stack.enter_context(own_cluster() if self._address is None else _cluster_at(self._address))
            self._check_room()
            self._app = ray.put(self._client_app)
            self._start_missing()
            self._stack = stack.pop_all()
        return self

    def _check_room(self) -> None:
        if not self._num_slots():
            raise InputError(
                f"no node of the Ray cluster has room for hardware.num_cpus={self._num_cpus} and hardware.num_gpus="
                f"{self._num_gpus}; try hardware.num_cpus=1 hardware.num_gpus=0"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the actors, and the cluster if this run started it."""
        for worker in (*self._workers, *self._starting):
            worker.stop()
        self._workers.clear()
        self._starting.clear()
        self._app = None
        self._stack.close()

    def _num_slots(self) -> int:
        """Return the number of actors for which the cluster has room, each on one node."""
        needs = {"CPU": self._num_cpus, "GPU": self._num_gpus}
        return sum(
            min(int(node["Resources"].get(name, 0) / share) for name, share in needs.items() if share)
            for node in ray.nodes()
            if node["Alive"]
        )

    def _start_missing(self) -> None:
        wanted = min(self._num_slots(), self._num_supernodes) - len(self._workers)
        while len(self._starting) < wanted:
            self._starting.append(_Actor(self._app, self._num_cpus, self._num_gpus))
        while self._starting and len(self._starting) > wanted:
            self._starting.pop().stop()

    def _num_ahead(self) -> int:
        return 2 * self._num_slots()

    def _publish(self, content: RecordDict) -> Any:
        return ray.put(content)

    def _ready(self) -> Iterable[Worker]:
        # A new actor may wait for room if a node was lost, so it gets tasks only once it has started.
        awaited = {worker.started: worker for worker in self._starting}
        awaited |= {worker.results[0]: worker for worker in self._workers if worker.results}
        done, _ = ray.wait(list(awaited), num_returns=1, timeout=1) if awaited else ([], [])
        if not done:
            self._start_missing()  # nodes may have joined or left
        ready = []
        for worker in (awaited[ref] for ref in done):
            if worker not in self._starting:
                ready.append(worker)
                continue
            self._starting.remove(worker)
            if worker.has_started():
                self._workers.append(worker)
        return ready


@contextmanager
def _cluster_at(address: str) -> Iterator[None]:
    """Connect to an existing cluster."""
    try:
        _check_reachable(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"no Ray cluster answers at hardware.address={address} ({reason}); "
            "try hardware.address=null, or ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise an ``OSError`` if nothing listens at an address; Ray itself retries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


class _Actor:
    """The main process's side of an actor."""

    def __init__(self, app: Any, num_cpus: float, num_gpus: float) -> None:
        self.name = "an actor of Ray"
        self.tasks: deque[int] = deque()
        self.results: deque[Any] = deque()
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        client: Any = ray.remote(_Client)
        self._actor = client.options(**options).remote(app)
        self.started = self._actor.start.remote()

    def has_started(self) -> bool:
        try:
            ray.get(self.started)
        except RayActorError as error:
            if error.actor_init_failed:
                raise RuntimeError(f"an actor could not start:\n{error}") from error
            return False
        return True

    def submit(self, published: Any, task: Answer | Train) -> None:
        self.results.append(self._actor.work.remote([published], task))

    def result(self) -> Any:
        try:
            return ray.get(self.results.popleft())
        except (RayActorError, ObjectLostError) as error:
            self.stop()
            raise WorkerDied(str(error).strip().splitlines()[0]) from None

    def stop(self) -> None:
        ray.kill(self._actor)


class _Client:
    """The actor."""

    def __init__(self, app: ClientApp) -> None:
        limit_threads(1)
        flower.quieten()
        if ray.get_gpu_ids() and isinstance(app, Clients):
            be_deterministic()
            app = app.to("cuda")
        self._app = app
        self._content: tuple[Any, Any] = None, None

    def start(self) -> None:
        """Return once the actor has started."""

    def work(self, published: list[Any], task: Answer | Train) -> Any:
        """Return the result of a task; our own app shares the fetched content of a round."""
        (ref,) = published
        if ref != self._content[0] or not isinstance(self._app, Clients):
            self._content = ref, ray.get(ref)
        content = self._content[1]
        if isinstance(task, Train):
            assert isinstance(self._app, Clients)
            return train(self._app, content, task.client, layout_of(self._app, content))
        return answer(self._app, flower.message(task.metadata, content), task.context), task.context.state
