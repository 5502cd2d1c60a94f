"""Damaged files cause a line that reports it, a repair, or the right result, and nothing else.

``./scripts/test --long`` tries more.
"""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedresearch.data.cache import cached_arrays
from fedresearch.errors import InputError
from fedresearch.runs.checkpoint import FOLDER, read_checkpoints, write_checkpoint
from fedresearch.runs.directory import FAILURES, History, RunDirectory
from fedresearch.runs.record import METRICS, RECORD, dump_record, parse_rows, read_record, read_rows, state_of
from tests.conftest import LONG
from tests.damages import without_a_size

ONE_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    max_examples=1500 if LONG else 100,
)
PLAIN = {"history": {"num_rounds": 2}, "strategy": {"name": "a", "x": 0.5}}
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/c": np.array(7),
    "d": np.zeros(0),
    "e": np.ones(3, bool),
}
ROWS = [{"round": n, "train/loss": 1 / n, "eval/loss": None, "time/round_s": 0.25} for n in (1, 2, 3, 4)]


@st.composite
def damages(draw):
    """Draw a function from a file's content to a damaged one's; where it strikes is a share of the file's length."""
    kind = draw(st.sampled_from(["flip", "set", "cut", "zero", "drop", "insert", "double"]))
    where, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 40))
    byte, bit = draw(st.integers(0, 255)), draw(st.integers(0, 7))

    def damaged(content):
        at = int(where * len(content))
        head, tail = content[:at], content[at:]
        return {
            "flip": head + bytes([tail[0] ^ 1 << bit]) + tail[1:],
            "set": head + bytes([byte]) + tail[1:],
            "cut": head,
            "zero": head + bytes(len(tail[:length])) + tail[length:],
            "drop": head + tail[length:],
            "insert": head + bytes([byte]) + tail,
            "double": head + tail[:length] + tail,
        }[kind]

    return damaged


# In formats with a header, most damage is to one of a few bytes.
AT_THE_BEGINNING = st.tuples(st.integers(0, 700), st.integers(0, 255))


@pytest.fixture
def run(tmp_path):
    """Return a run's directory, after round 4, with checkpoints of rounds 1 and 2 and a failure in each round."""
    run = RunDirectory(tmp_path / "run", {"id": "x", "config": {"seed": 0, "lr": 0.1}}, History())
    for row in ROWS:
        run.log(row)
        run.log_failure(row["round"], 0, "train", "not today")
        if row["round"] < 3:
            plain = {**PLAIN, "history": vars(run.history)}
            write_checkpoint(run.path, row["round"], plain, {**ARRAYS, "n": np.array(row["round"])}, keep=2)
    run.close("finished")
    return tmp_path / "run"


def check_checkpoint(run, path, content):
    path.write_bytes(content)
    try:
        server_round, plain, arrays = next(read_checkpoints(run))
    except InputError as error:  # of its format, which the digest is not of
        assert str(error).startswith(f"{path} has format")  # noqa: PT017
        return
    assert server_round in (1, 2)
    assert plain == {**PLAIN, "history": plain["history"]}
    assert plain["history"]["num_rounds"] == server_round == arrays["n"]
    assert arrays.keys() == {*ARRAYS, "n"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


@ONE_FOLDER
@given(damages())
def test_a_damaged_checkpoint_is_reported_or_another_is_read(run, damage):
    path = run / FOLDER / "round_000002.safetensors"
    intact = path.read_bytes()
    try:
        check_checkpoint(run, path, damage(intact))
    finally:
        path.write_bytes(intact)


@ONE_FOLDER
@given(AT_THE_BEGINNING)
def test_a_damaged_header_of_a_checkpoint(run, damage):
    path = run / FOLDER / "round_000002.safetensors"
    intact, (at, byte) = path.read_bytes(), damage
    try:
        check_checkpoint(run, path, intact[:at] + bytes([byte]) + intact[at + 1 :])
    finally:
        path.write_bytes(intact)


@ONE_FOLDER
@given(damages())
def test_a_damaged_record_is_reported(run, damage):
    path = run / RECORD
    intact, expected = path.read_bytes(), read_record(run)
    try:
        path.write_bytes(damage(intact))
        try:
            assert read_record(run) == expected
            assert state_of(run) == "finished"
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert state_of(run) == "damaged"
    finally:
        path.write_bytes(intact)


@ONE_FOLDER
@given(damages(), st.integers(0, 2))
def test_damaged_rows_are_reported_or_recomputed(tmp_path, run, damage, after):
    """Rows that a checkpoint covers are kept; later ones are compared with those that the rounds give again."""
    copy = copy_of(run, tmp_path)
    (copy / METRICS).write_bytes(damage((run / METRICS).read_bytes()))
    resumed = None
    try:
        resumed = RunDirectory(copy, {}, history_of(run, after))
        for row in ROWS[after:]:
            resumed.log(row)
    except InputError:
        return
    finally:
        if resumed:
            resumed.close("finished")
    assert [without_times(row) for row in read_rows(copy)] == [without_times(row) for row in ROWS]
    RunDirectory(copy, {}, resumed.history).close("finished")  # its digest is that of the file
    assert resumed.history.num_bytes == (copy / METRICS).stat().st_size


def copy_of(run, folder):
    shutil.rmtree(folder / "copy", ignore_errors=True)
    return shutil.copytree(run, folder / "copy")


def history_of(run, after):
    known = {server_round: History(**plain["history"]) for server_round, plain, _ in read_checkpoints(run)}
    return known.get(after, History())


def without_times(row):
    return {key: value for key, value in row.items() if not key.startswith("time/")}


@ONE_FOLDER
@given(damages(), st.integers(0, 2))
def test_damaged_failures_are_left_out(tmp_path, run, damage, after):
    copy = copy_of(run, tmp_path)
    (copy / FAILURES).write_bytes(damage((run / FAILURES).read_bytes()))
    RunDirectory(copy, {}, history_of(run, after)).close("finished")
    for line in (copy / FAILURES).read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["round"] <= after


@pytest.mark.parametrize("line", ["[" * 100_000, '{"round": ' + "9" * 5000 + "}", "null", '{"round": "1"}', "{}"])
def test_a_line_that_is_not_a_failure_is_left_out(run, line):
    (run / FAILURES).write_text(line + "\n")
    history = History(**next(read_checkpoints(run))[1]["history"])
    RunDirectory(run, {}, history).close("finished")
    assert (run / FAILURES).read_text() == ""


@pytest.mark.parametrize("line", ["[" * 100_000, '{"round": ' + "9" * 5000 + "}", "null", '{"round": true}'])
def test_a_line_that_is_not_a_row_is_reported(run, line):
    rows = (run / METRICS).read_text().splitlines(keepends=True)
    (run / METRICS).write_text(line + "\n" + "".join(rows[1:]))
    with pytest.raises(InputError, match="is damaged: line 1 is not the row of round 1"):
        read_rows(run)


CACHED = {"x": np.arange(300, dtype=np.uint8).reshape(3, 100), "y": np.array([1, 2, 3]), "none": np.zeros((0, 2))}


@ONE_FOLDER
@example(without_a_size)
@given(st.one_of(damages(), AT_THE_BEGINNING))
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    cached_arrays(tmp_path, "set", ["key"], lambda: CACHED)
    [entry] = tmp_path.glob("*.npz")
    content = entry.read_bytes()
    if not callable(damage):
        at, byte = damage
        damage = lambda content: content[:at] + bytes([byte]) + content[at + 1 :]  # noqa: E731
    entry.write_bytes(damage(content))
    for _ in range(2):  # the second reads what was made again
        arrays = cached_arrays(tmp_path, "set", ["key"], lambda: CACHED)
        assert arrays.keys() == CACHED.keys()
        for name, array in CACHED.items():
            np.testing.assert_array_equal(arrays[name], array, strict=True)
    entry.unlink()


def test_a_row_may_have_many_brackets_but_not_deep_nesting(tmp_path):
    many = {"round": 1, **{f"layers[{number}]": [number] for number in range(100)}}
    rows, _ = parse_rows(json.dumps(many).encode() + b"\n", tmp_path)
    assert rows == [many]
    deep = b'{"round": 1, "x": ' + b"[" * 100 + b"]" * 100 + b"}\n"
    with pytest.raises(InputError, match="line 1 is not the row of round 1"):
        parse_rows(deep, tmp_path)


@pytest.mark.parametrize("fields", [{"config": {"x": {"eval/\ud800": 1}}}, {"config_dirs": ["conf\udfff"]}])
def test_a_record_with_invalid_unicode_is_rejected(tmp_path, fields):
    (tmp_path / "run.json").write_text(dump_record({"status": "finished", "choices": {}, **fields}))
    with pytest.raises(InputError, match=r"run.json is damaged: it has text that is not Unicode"):
        read_record(tmp_path)


def test_a_path_need_not_be_utf8(tmp_path):
    folder = b"a\xff".decode(errors="surrogateescape")
    (tmp_path / "run.json").write_text(dump_record({"working_directory": folder}))
    assert read_record(tmp_path)["working_directory"] == folder
