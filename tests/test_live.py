"""The report's server: what it answers, how it follows its runs, and what it refuses."""

import json
from http.client import HTTPConnection
from threading import Thread

import pytest

from fedresearch.errors import InputError
from fedresearch.study.report import command, live
from fedresearch.study.report.live import LiveServer
from fedresearch.study.report.load import load
from tests.records import make, report


@pytest.fixture
def sweep(tmp_path):
    """Return a directory of two runs that have not finished: the mean is of both."""
    make(tmp_path / "sweep" / "a", seed=0, status="killed", rows=[{"eval/accuracy": 0.25}, {"eval/accuracy": 0.5}])
    make(tmp_path / "sweep" / "b", seed=1, status="running", rows=[{"eval/accuracy": 0.25}])
    return tmp_path / "sweep"


@pytest.fixture
def server(sweep):
    with LiveServer([sweep], lambda: report(load([sweep]))) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path="/data.json", method="GET", **headers):
    connection = HTTPConnection(*server.server_address, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, answer.headers["ETag"], content


def add_round(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 2, "eval/accuracy": 0.75}) + "\n")


def rounds_and_curve(content):
    values = json.loads(content)
    return [run["rounds"] for run in values["runs"]], values["cells"][0]["y"]["eval/accuracy"]["mean"]


def test_a_new_round_is_in_the_next_answer(server, sweep):
    status, tag, content = ask(server)
    assert status == 200
    assert rounds_and_curve(content) == ([2, 1], [0.25])
    assert ask(server, If_None_Match=tag) == (304, tag, "")

    add_round(sweep / "b")
    status, newer, content = ask(server, If_None_Match=tag)
    assert status == 200
    assert newer != tag
    assert rounds_and_curve(content) == ([2, 2], [0.25, 0.625])


def test_nothing_is_written(server, sweep):
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*")}
    assert ask(server, "/")[0] == ask(server)[0] == 200
    assert ask(server, method="POST")[0] == 501
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*")} == before


def test_only_the_page_and_its_document_are_served(server):
    status, _, content = ask(server, "/?view=1")
    assert status == 200
    assert "connect-src 'self'" in content
    assert ask(server, "/a/run.json")[0] == ask(server, "/../../etc/passwd")[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost", 200), ("evil.example", 403), ("127.0.0.1.evil.example:1", 403), ("", 403)],
)
def test_another_hosts_name_is_refused(server, host, status):
    assert ask(server, Host=host)[0] == status


def test_runs_that_become_unreadable_are_reported_and_read_again(server, sweep):
    whole = (sweep / "b" / "run.json").read_text()
    for path in (sweep / "a", sweep / "b"):
        (path / "run.json").rename(path / "gone")
    status, _, content = ask(server)
    assert (status, content.startswith(f"no run in {sweep};")) == (503, True)
    (sweep / "b" / "run.json").write_text(whole)
    assert ask(server)[0] == 200


def test_a_sweep_that_has_not_begun_is_waited_for(tmp_path):
    (tmp_path / "sweep.json").write_text('[{"overrides": [], "directory": "a"}, {"overrides": [], "directory": "b"}]')
    with LiveServer([tmp_path], lambda: report(load([tmp_path]))) as server:
        assert server.missing == "no run has a round yet"
        _, values = server.current()
        assert values["notes"] == ["no run has a round yet", "Runs: 2 missing"]
        make(tmp_path / "a", status="running", rows=[{"eval/accuracy": 0.5}])
        assert server.current()[1]["title"] == "Test accuracy of 1 run in 1 cell"
        assert not server.missing


def test_a_baseline_is_left_out_until_a_second_arm_has_begun(tmp_path, monkeypatch):
    def title_and_notes():
        command.main([str(tmp_path), "--live", "--baseline", "strategy=fedavg"])
        return built.title, built.notes

    def serve(paths, build, port):
        nonlocal built
        built = build()

    built = None
    monkeypatch.setattr(live, "serve", serve)
    (tmp_path / "sweep.json").write_text('[{"overrides": [], "directory": "a"}, {"overrides": [], "directory": "b"}]')
    make(tmp_path / "a", rows=[{"eval/accuracy": 0.5}])
    title, notes = title_and_notes()
    assert title == "Test accuracy of 1 run in 1 cell"
    assert notes[0].startswith("until more runs have begun, this leaves out --baseline: strategy does not vary")
    make(tmp_path / "b", rows=[{"eval/accuracy": 0.5}], choices={"strategy": "fedprox"})
    assert title_and_notes() == ("Test accuracy of 2 runs in 2 cells", [])


def test_what_no_run_will_change_is_refused_at_once(tmp_path):
    make(tmp_path / "a", status="failed")
    with pytest.raises(InputError, match="no run has a round yet"):
        LiveServer([tmp_path], lambda: report(load([tmp_path])))


def test_a_port_in_use_is_refused(server, sweep):
    with pytest.raises(InputError, match=f"^--port {server.server_port} cannot be used: Address already in use; leave"):
        LiveServer([sweep], lambda: report(load([sweep])), server.server_port)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--port", "1"], "--port goes with --live"), (["--live", "--out", "x"], "--live writes nothing")],
)
def test_options_that_do_not_go_together_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        command.main([".", *words])
    assert message in capsys.readouterr().err
