"""The table of a sweep's jobs, for jobs that never ran."""

import re

import pytest

from fedresearch.errors import InputError
from fedresearch.study.sweep.status import show
from tests.records import make

OWN = {"own_models": True}
GLOBAL, PERSONAL = {"eval/accuracy": 0.25}, {"eval/accuracy": 0.25, "personal/accuracy": 0.75}


@pytest.fixture
def print_status(tmp_path, capsys):
    """Return a function that writes jobs (overrides, row, record fields) and returns the printed lines."""

    def print_status_(*jobs):
        for number, (words, row, record) in enumerate(jobs):
            make(tmp_path / f"{number}", rows=[row], record={"overrides": words, **record})
        show(tmp_path)
        return capsys.readouterr().out.splitlines()

    return print_status_


def test_jobs_with_personal_models_show_their_metric(print_status):
    head, *jobs, _ = print_status((["strategy=fedrep"], PERSONAL, OWN), (["strategy=fedbn"], PERSONAL, OWN))
    assert head.split()[-1] == "personal/accuracy"
    assert [line.split()[-1] for line in jobs] == ["0.7500", "0.7500"]


def test_a_table_of_global_models_warns_of_jobs_with_personal_models(print_status):
    head, *_, line = print_status((["strategy=fedavg"], GLOBAL, {}), (["strategy=fedrep"], PERSONAL, OWN))
    assert head.split()[-1] == "eval/accuracy"
    assert line == (
        "warning: eval/accuracy is of the global model, and in 1 of 2 jobs, such as strategy=fedrep, the clients' own "
        "models are the result: compare personal/accuracy of these with clients/accuracy of the others"
    )


def test_a_table_of_jobs_with_global_models_has_no_warning(print_status):
    assert print_status((["seed=0"], GLOBAL, {}), (["seed=1"], GLOBAL, {}))[-1].startswith("2 finished in ")


def test_sweeps_in_the_folder_are_named(print_status, tmp_path):
    for number, status in enumerate(("finished", "failed", "finished")):
        make(tmp_path / "sweep_a" / f"{number}", status=status)
    with pytest.raises(
        InputError, match=f"^{re.escape(str(tmp_path))} holds sweeps .*; try one of {tmp_path}/sweep_a$"
    ):
        show(tmp_path)
    *_, last = print_status((["seed=0"], GLOBAL, {}))
    assert last == f"{tmp_path / 'sweep_a'} is a separate sweep: 2 finished, 1 failed"
