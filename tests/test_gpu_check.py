import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from scripts.gpu_check import model_difference, rows_difference, run_module

ROW = {"round": 1, "eval/loss": 0.5, "comm/bytes_up": 1000, "update/cosine": None, "model/sha256": "a"}


@pytest.mark.parametrize(
    ("changed", "difference", "column"),
    [
        ({"model/sha256": "b"}, 0.0, ""),
        ({"eval/loss": 0.75}, 0.25, "eval/loss"),
        ({"comm/bytes_up": 1500}, 0.5, "comm/bytes_up"),  # of 1000, relative
        ({"eval/loss": math.nan}, math.inf, "eval/loss"),
        ({"update/cosine": 0.1}, math.inf, "update/cosine"),
        ({"new": 0.0}, math.inf, "new"),
    ],
)
def test_the_largest_difference_of_rows_and_its_column(changed, difference, column):
    assert rows_difference([ROW, ROW | changed], [ROW, ROW]) == (difference, column)


def test_a_missing_round_differs():
    assert rows_difference([ROW], [ROW, ROW])[0] == math.inf


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"w": [1.0, 2.0]}, 0.0),
        ({"w": [1.0, 2.5]}, 0.5),
        ({"w": [1.0, math.nan]}, math.inf),
        ({"v": [1.0, 2.0]}, math.inf),
    ],
)
def test_the_largest_difference_of_models(tmp_path, other, difference):
    for name, arrays in {"a": {"w": [1.0, 2.0]}, "b": other}.items():
        (tmp_path / name).mkdir()
        save_file({key: np.array(values) for key, values in arrays.items()}, tmp_path / name / "model.safetensors")
    assert model_difference(tmp_path / "a", tmp_path / "b") == difference


def test_nothing_starts_after_the_end():
    with pytest.raises(RuntimeError, match="try a larger --seconds"):
        run_module(0.0, "scripts.no_such_module")
