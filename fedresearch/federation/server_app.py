"""The ServerApp: the round loop from a global model."""

from collections.abc import Callable

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedresearch.federation.measures import Row
from fedresearch.federation.rounds import RoundLoop


def make_server_app(
    loop: RoundLoop, arrays: ArrayRecord, finish: Callable[[ArrayRecord], None], last: Row | None = None
) -> ServerApp:
    """Return a ServerApp that runs the loop from global arrays, or after a last round, and passes its result on."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        finish(loop.run(grid, arrays, last))

    return app
