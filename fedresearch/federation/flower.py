"""The only module that uses Flower's private names, each with a reason.

Flower changes these names from release to release, so a release outside ``TESTED`` is refused. ``tests/test_flower.py``
tests what this module relies on.
"""

import hmac
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from flwr.app import Error, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import fedavg, fedxgb_cyclic, strategy_utils
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedresearch.errors import InputError
from fedresearch.federation.broadcast import Broadcast

__all__ = [
    "FIRST_NODE_ID",
    "TESTED",
    "Run",
    "be_server",
    "check_version",
    "client_error",
    "message",
    "quieten",
    "run_superexec",
    "run_superlink",
    "set_message_id",
    "unknown_message",
]

TESTED = ("1.41", "1.42")

# The node id of partition 0, on all hardware. Node 1 is the server, as on a SuperLink.
FIRST_NODE_ID = 2

# flwr.common.constant.ErrorCode
_CLIENT_APP_RAISED_EXCEPTION = 2
_MESSAGE_UNAVAILABLE = 3

_wait_and_draw = strategy_utils.sample_nodes


def _sample_nodes(grid: Grid, min_available_nodes: int, sample_size: int) -> tuple[list[int], list[int]]:
    """Return the nodes that a strategy addresses, and all nodes; a Grid that has ``sample_nodes`` decides itself.

    Flower's own function waits for the nodes without a limit.
    """
    if not hasattr(grid, "sample_nodes"):
        return _wait_and_draw(grid, min_available_nodes, sample_size)
    chosen: tuple[list[int], list[int]] = grid.sample_nodes(min_available_nodes, sample_size)
    return chosen


for _module in (strategy_utils, fedavg, fedxgb_cyclic):  # all modules that import it
    vars(_module)["sample_nodes"] = _sample_nodes


def _construct_messages(
    strategy: fedavg.FedAvg, record: RecordDict, node_ids: list[int], message_type: str
) -> Broadcast:
    """Return the messages of FedAvg and of strategies that extend it; Flower's own function makes each at once."""
    return Broadcast(record, node_ids, message_type)


fedavg.FedAvg._construct_messages = _construct_messages  # type: ignore[method-assign, assignment]


def _set_item(record: Any, key: Any, value: Any) -> None:
    """Check and store a record's value as Flower's own method does, which makes two types of ``typing`` each time."""
    own = vars(record)
    own["_check_key_fn"](key)
    own["_check_value_fn"](value)
    own["_data"][key] = value


_TypedDict: Any = MetricRecord.__mro__[1]  # the base of all records
_TypedDict.__setitem__ = _set_item


def check_version() -> None:
    """Refuse a Flower release whose private names have not been tested.

    Raises
    ------
    InputError
        With the installed release and the releases that work.
    """
    installed = version("flwr")
    if installed.rpartition(".")[0] not in TESTED:
        raise InputError(
            f"flwr {installed} is installed, fedresearch works with {' and '.join(f'{v}.*' for v in TESTED)}; "
            f"try pip install 'flwr[simulation]=={TESTED[-1]}.*'"
        )


def quieten(level: int = logging.WARNING) -> None:
    """Print Flower's log lines once, and only from a level up.

    Flower's logger has its own handler and level (``FLWR_LOG_LEVEL``) and propagates, so that Hydra would print each
    line a second time.
    """
    logger = logging.getLogger("flwr")
    logger.propagate = False
    logger.setLevel(level)


def be_server(run_id: int) -> None:
    """Give this process the identity without which ``Message(content, dst_node_id, ...)`` raises."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of a message, which a SuperLink sets elsewhere."""
    message.metadata.__dict__["_message_id"] = message_id


def message(metadata: Metadata, content: RecordDict) -> Message:
    """Return the message of a metadata and a content."""
    return Message(content, metadata=metadata)  # type: ignore[call-overload]


def client_error(reason: str, reply_to: Message) -> Message:
    """Return the reply that Flower makes when a ClientApp raises."""
    return Message(Error(code=_CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=reply_to)


def unknown_message(message_id: str, run_id: int) -> Message:
    """Return Flower's reply for a message id that it does not know."""
    server = TaskIdentity.node_id
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=server,
        dst_node_id=server,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type="system",
    )
    error = Error(code=_MESSAGE_UNAVAILABLE, reason="no message has this id, or its reply was pulled before")
    return Message(error, metadata=metadata)  # type: ignore[call-overload]


def run_superlink(token: str) -> None:
    """Run ``flower-superlink`` so that submitting to it requires a token.

    With FLWR_OIDC_ENABLED=1 Flower asks a plugin who may submit; only its enterprise distribution contains plugins.
    """
    from flwr.superlink import config_loader
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import flower_superlink

    class Token(NoOpControlAuthnPlugin):
        def validate_tokens_in_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[bool, Any]:
            received = str(dict(metadata).get("flwr-oidc-access-token", ""))
            return super().validate_tokens_in_metadata(metadata) if _are_equal(received, token) else (False, None)

        def refresh_tokens(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[None, None]:
            return None, None

    os.environ["FLWR_OIDC_ENABLED"] = "1"
    config_loader.get_control_authn_ee_plugins = lambda: {"oidc": Token}  # type: ignore[attr-defined]
    flower_superlink()


def run_superexec() -> None:
    """Run ``flower-superexec`` so that it passes tokens to tasks in files: every user can read a command line.

    The token of a ServerApp's task permits submitting further apps.
    """
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        option = command.index("--token")
        descriptor, file = tempfile.mkstemp(prefix="token-", dir=os.environ["FLWR_HOME"])
        os.write(descriptor, command[option + 1].encode())
        os.close(descriptor)
        return subprocess.Popen([*command[:option], "--token-file", file, *command[option + 2 :]], **options)

    vars(subprocess_executor)["subprocess"] = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
    flower_superexec()


def _are_equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
