"""The command ``python -m scripts.client_table``: what formats of the clients' table cost, in bytes and CPU seconds.

The numbers of a table of some clients by some rounds are made from a seed, written round by round, and read to a
DataFrame: as Arrow's stream with a batch a round, as Parquet with a file for each 25 rounds, and as ours, which is also
torn in the middle of its last line and cut for a resume.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedresearch import load_clients
from fedresearch.runs.client_table import CLIENTS, cut
from fedresearch.runs.directory import History, RunDirectory

Columns = dict[str, Any]


def columns_of(num_clients: int, server_round: int) -> Columns:
    """Return what clients could have done in a round: all train and evaluate."""
    rng = np.random.default_rng(server_round)
    sizes = np.maximum(10, np.random.default_rng(0).lognormal(0, 1, num_clients) * 60).astype(int)
    noise = {name: rng.random(num_clients) for name in ("train/loss", "update/norm", "update/cosine", "clients/loss")}
    return {
        "partition_id": np.arange(num_clients),
        "num_examples": sizes,
        "local/steps": sizes // 10 + 1,
        "comm/bytes_down": np.full(num_clients, 60_657),
        "comm/bytes_up": np.full(num_clients, 60_678),
        "failed": np.zeros(num_clients, bool),
        "clients/accuracy": rng.integers(0, 13, num_clients) / 12,
        **noise,
    }


def seconds(call: Callable[..., object], *arguments: Any) -> float:
    """Return the CPU time of a call."""
    started = time.process_time()
    call(*arguments)
    return time.process_time() - started


def write_arrow(folder: Path, rounds: list[Columns]) -> None:
    """Write a stream with a batch for each round, compressed with LZ4."""
    schema = pa.RecordBatch.from_pydict({"round": [0], **{k: v[:1] for k, v in rounds[0].items()}}).schema
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        (folder / "clients.arrows").open("ab", buffering=0) as file,
        pa.ipc.new_stream(file, schema, options=options) as stream,
    ):
        for server_round, columns in enumerate(rounds, start=1):
            row = np.full(len(columns["failed"]), server_round)
            stream.write_batch(pa.RecordBatch.from_pydict({"round": row, **columns}, schema=schema))


def read_arrow(folder: Path) -> pd.DataFrame:
    """Return the table of a stream."""
    with pa.OSFile(str(folder / "clients.arrows")) as file:
        return pa.ipc.open_stream(file).read_all().to_pandas()


def write_parquet(folder: Path, rounds: list[Columns]) -> None:
    """Write a file for each 25 rounds, compressed with Zstandard."""
    for start in range(0, len(rounds), 25):
        part = [
            pd.DataFrame({"round": start + n, **columns}) for n, columns in enumerate(rounds[start : start + 25], 1)
        ]
        pq.write_table(pa.Table.from_pandas(pd.concat(part)), folder / f"{start:06}.parquet", compression="zstd")


def write_ours(folder: Path, rounds: list[Columns]) -> None:
    """Write it as a run does."""
    run = RunDirectory(folder, {"id": "x"}, History())
    for server_round, columns in enumerate(rounds, start=1):
        run.log_clients(server_round, {"train": {name: values.tolist() for name, values in columns.items()}})
    run.close("finished", result=None)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    arguments = parser.parse_args()
    rounds = [columns_of(arguments.clients, server_round) for server_round in range(arguments.rounds)]
    formats: dict[str, tuple[Callable[[Path, list[Columns]], None], Callable[[Path], pd.DataFrame], str]] = {
        "Arrow stream, LZ4": (write_arrow, read_arrow, "*.arrows"),
        "Parquet files": (write_parquet, pd.read_parquet, "*.parquet"),
        "`clients.jsonl`": (write_ours, load_clients, CLIENTS),
    }
    print("| format | MB | CPU ms a round to write | CPU s to read |\n|---|---|---|---|")
    for name, (write, read, files) in formats.items():
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            write_ms = 1000 * seconds(write, folder, rounds) / len(rounds)
            megabytes = sum(path.stat().st_size for path in folder.glob(files)) / 1e6
            print(f"| {name} | {megabytes:.1f} | {write_ms:.3f} | {seconds(read, folder):.2f} |", flush=True)
            if files == CLIENTS:
                path = folder / CLIENTS
                with path.open("ab") as file:
                    file.write(orjson.dumps({"round": len(rounds) + 1})[:-2])
                took = seconds(cut, path, len(rounds) - 1)
                print(f"\nTorn, and cut after the round before the last, for a resume: {took:.2f} CPU s")


if __name__ == "__main__":
    main()
