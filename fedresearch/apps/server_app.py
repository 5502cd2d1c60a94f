"""The ServerApp: the round loop from the initial global model."""

from collections.abc import Callable

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedresearch.apps.rounds import RoundLoop


def make_server_app(loop: RoundLoop, initial_arrays: ArrayRecord, finish: Callable[[ArrayRecord], None]) -> ServerApp:
    """Return the ServerApp that runs the loop and hands the last global arrays to ``finish``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        finish(loop.run(grid, initial_arrays))

    return app
