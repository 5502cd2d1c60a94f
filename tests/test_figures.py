"""A report's figures: they show the given data, curves are distinguishable, and equal figures are equal files."""

import io
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgba

from fedresearch.runs.directory import Unwritable
from fedresearch.study.report.canvas import png, save
from fedresearch.study.report.plot_data import Curve, Line, Spread
from fedresearch.study.report.plots import (
    MAX_DRAWN,
    plot_client_spread,
    plot_heat_map,
    plot_learning_curves,
    plot_partition,
    plot_sensitivity,
)

ROUNDS = np.arange(1.0, 6)
LONG = "strategy=fedprox, proximal_mu=0.01, partitioner=dirichlet, alpha=0.1"


def curve(label="fedavg", x=ROUNDS, mean=ROUNDS / 10, half_width=0.05):
    return Curve(label, x, mean, mean - half_width, mean + half_width)


def line(values, label="fedavg", mean=0.5, half_width=0.1):
    values = np.array(values, dtype=float)
    return Line(label, values, np.full_like(values, mean), np.full_like(values, half_width))


def table(values, rows=("a", "b"), columns=("x", "y")):
    return plot_heat_map(np.array(values, dtype=float), rows, columns, "lr", "epochs", "accuracy")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def extents(texts):
    return [text.get_window_extent() for text in texts]


def test_a_curve_is_the_known_mean_with_a_band_around_it():
    mean = np.array([0.1, np.nan, 0.3, np.nan, 0.5])
    (axes,) = plot_learning_curves([curve(mean=mean)], "rounds", "eval/accuracy").axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(1, 0.1), (3, 0.3), (5, 0.5)])
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.round(9).tolist()}
    assert corners == {(x, round(y + w, 9)) for x, y in [(1, 0.1), (3, 0.3), (5, 0.5)] for w in (-0.05, 0.05)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rounds", "eval/accuracy")
    bottom, top = axes.get_ylim()
    assert bottom <= 0.05
    assert top >= 0.55


@pytest.mark.parametrize(
    ("metric", "mean", "top"), [("eval/accuracy", 0.9, 1.02), ("eval/loss", 0.9, 1.9), ("eval/accuracy", 50.0, 51.0)]
)
def test_the_axis_ends_where_accuracies_end(metric, mean, top):
    shares = {"is_share": metric == "eval/accuracy"}
    (axes,) = plot_learning_curves([curve(mean=np.full(5, mean), half_width=1.0)], "rounds", metric, **shares).axes
    assert axes.get_ylim()[1] == pytest.approx(top, rel=0.1)
    (axes,) = plot_sensitivity([line([1, 2], mean=mean, half_width=1.0)], "lr", metric, **shares).axes
    assert axes.get_ylim()[1] == pytest.approx(top, rel=0.1)
    assert axes.get_ylim()[1] >= top or top == 1.02


def test_a_partition_is_a_stack_of_classes():
    counts = np.array([[3, 1, 0], [0, 2, 5]])
    figure = plot_partition(counts, "iid, seed 0")
    bars = [[(bar.get_y(), bar.get_height()) for bar in layer] for layer in figure.axes[0].containers]
    assert bars == [[(0, 3), (0, 0)], [(3, 1), (0, 2)], [(4, 0), (2, 5)]]
    assert legend(figure) == ["class 0", "class 1", "class 2"]
    assert figure.axes[0].get_xlabel() == "client"


def test_many_clients_are_cut_and_many_classes_have_a_colour_scale():
    figure = plot_partition(np.ones((120, 62), np.int64), "femnist")
    assert figure.axes[0].get_xlabel() == "client, 100 of 120"
    assert (len(figure.legends), figure.axes[1].get_ylabel()) == (0, "class")


def test_a_single_run_has_no_band():
    (axes,) = plot_learning_curves([curve(half_width=np.nan)], "rounds", "eval/accuracy").axes
    assert not axes.collections


def test_cells_are_distinguishable_without_colours():
    figure = plot_learning_curves([curve(f"cell {n}") for n in range(MAX_DRAWN)], "rounds", "eval/accuracy")
    lines = figure.axes[0].lines
    assert legend(figure) == [f"cell {n}" for n in range(MAX_DRAWN)]
    fillings = ["hollow" if to_rgba(each.get_markerfacecolor()) == (1, 1, 1, 1) else "full" for each in lines]
    assert len({(each.get_marker(), filling) for each, filling in zip(lines, fillings, strict=True)}) == MAX_DRAWN
    assert len({(each.get_color(), str(each._unscaled_dash_pattern)) for each in lines}) == MAX_DRAWN
    starts = [each.get_markevery()[0] for each in lines]
    assert max(starts) < len(ROUNDS)  # so that each has a marker


def test_sixteen_of_forty_cells_are_drawn_and_the_legend_says_so():
    figures = [
        plot_learning_curves([curve(f"{LONG} {n}") for n in range(40)], "rounds", "accuracy"),
        plot_sensitivity([line([1, 2], f"{LONG} {n}") for n in range(40)], "epochs", "accuracy"),
        plot_client_spread([Spread(f"{LONG} {n}", 0.5, 0.1, 0.3, 0.2) for n in range(40)], "accuracy"),
    ]
    assert [len(figures[0].axes[0].lines), len(figures[1].axes[0].containers)] == [16, 16]
    assert [len(each.get_xdata()) for each in figures[2].axes[0].lines] == [16, 16, 16]
    for figure in figures:
        assert figure.legends[0].get_title().get_text() == "16 of 40 drawn"
        axes, below = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
        assert 0 <= below.y0 < below.y1 < axes.y0
        assert 0 <= below.x0 < below.x1 <= figure.bbox.width
        assert figure.get_figheight() < 9  # a page's


@pytest.mark.parametrize(("targets", "name"), [([0.95], "target 0.95"), ([0.6, 0.95], "targets 0.6, 0.95")])
def test_a_target_is_a_separate_line(targets, name):
    figure = plot_learning_curves([curve()], "rounds", "eval/accuracy", targets)
    assert legend(figure) == ["fedavg", name]
    assert [set(line.get_ydata()) for line in figure.axes[0].lines[1:]] == [{target} for target in targets]
    assert figure.axes[0].get_ylim()[1] > 0.95


def test_bytes_have_their_unit_and_rounds_are_whole():
    (axes,) = plot_learning_curves([curve(x=ROUNDS * 1e6)], "bytes so far", "eval/accuracy").axes
    assert [axes.xaxis.get_major_formatter()(x) for x in (2e3, 3e6, 1.5e9)] == ["2 kB", "3 MB", "1.5 GB"]
    (axes,) = plot_learning_curves([curve(x=ROUNDS[:2], mean=ROUNDS[:2])], "rounds", "eval/accuracy").axes
    assert all(tick.is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.01, 0.2], "log"), ([0.01, 0.19], "linear"), ([0, 1, 100], "linear"), ([-1, 100], "linear"), ([3], "linear")],
)
def test_the_axis_is_logarithmic_from_a_factor_of_20(values, scale):
    (axes,) = plot_sensitivity([line(values)], "lr", "accuracy").axes
    assert axes.get_xscale() == scale


def test_a_sensitivity_is_a_line_with_error_bars_and_ticks_at_the_values():
    lines = [
        Line("epochs=1", np.array([0.001, 0.01, 0.1]), np.array([0.5, 0.7, 0.6]), np.array([0.1, 0.2, np.nan])),
        Line("epochs=5", np.array([0.01]), np.array([0.9]), np.array([np.nan])),
    ]
    figure = plot_sensitivity(lines, "lr", "accuracy")
    (axes,) = figure.axes
    for given, (drawn, _, (bars,)) in zip(lines, axes.containers, strict=True):
        np.testing.assert_array_equal(drawn.get_xydata(), np.column_stack([given.values, given.mean]))
        ends = [segment[:, 1] for segment in bars.get_segments() if len(segment)]
        expected = [(m - w, m + w) for m, w in zip(given.mean, given.half_width, strict=True) if np.isfinite(w)]
        np.testing.assert_allclose(np.reshape(ends, (-1, 2)), np.reshape(expected, (-1, 2)))
    assert legend(figure) == ["epochs=1", "epochs=5"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.01", "0.1"]


def test_ticks_without_room_are_left_out():
    figure = plot_sensitivity([line(np.geomspace(0.00123, 1, 40))], "lr", "accuracy")
    boxes = extents(figure.axes[0].get_xticklabels())
    assert len(boxes) > 3
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_heat_map_has_a_number_on_each_colour_and_a_dash_on_hatching():
    axes, _ = table([[0.25, np.nan], [0.5, 1]]).axes
    (picture,) = axes.images
    np.testing.assert_array_equal(picture.get_array().filled(-1), [[0.25, -1], [0.5, 1]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "0.250",
        (1, 0): "–",
        (0, 1): "0.500",
        (1, 1): "1.00",
    }
    # cividis goes from dark blue to yellow; the hatching is light.
    assert [text.get_color() for text in axes.texts] == ["white", "black", "white", "black"]
    assert axes.patch.get_hatch()
    assert picture.to_rgba(np.nan)[3] == 0  # so that the hatching is seen
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_long_labels_of_columns_are_rotated_and_complete():
    columns = [f"dirichlet_partitioner alpha=0.{n} min_partition_size=10" for n in range(8)]
    figure = table(np.ones((1, 8)), rows=[LONG], columns=columns)
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == columns
    assert {label.get_rotation() for label in labels} == {90}
    boxes = extents(labels)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    rows = figure.axes[0].get_yticklabels()
    assert " ".join(rows[0].get_text().split("\n")) == LONG
    for box in boxes + extents(rows):
        assert box.x0 >= 0
        assert box.y0 >= 0


def test_labels_of_columns_with_room_stay_horizontal():
    labels = table(np.ones((1, 2)), rows=["a"], columns=["dirichlet, alpha=0.1, min_size=10", "iid"]).axes[0]
    assert {label.get_rotation() for label in labels.get_xticklabels()} == {0}


def test_numbers_in_a_heat_map_stay_in_their_cells():
    figure = table(np.full((1, 12), 0.5), rows=["a"], columns=list("abcdefghijkl"))
    left, right = figure.axes[0].get_window_extent().intervalx
    assert max(box.width for box in extents(figure.axes[0].texts)) < (right - left) / 12
    assert not table(np.full((1, 30), 0.5), rows=["a"], columns=["x"] * 30).axes[0].texts


@pytest.mark.parametrize(("p10", "worst", "name"), [(0.3, 0.1, "10th percentile"), (0.8, 0.9, "90th percentile")])
def test_a_spread_shows_mean_deviation_tenth_percentile_and_worst(p10, worst, name):
    figure = plot_client_spread([Spread("a", 0.5, 0.1, p10, worst), Spread("b", 0.6, 0.2, p10, worst)], "clients/x")
    (axes,) = figure.axes
    assert [list(each.get_xdata()) for each in axes.lines] == [[0.5, 0.6], [p10, p10], [worst, worst]]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.containers[0]]
    np.testing.assert_allclose(bars, [(0.4, 0.6), (0.4, 0.8)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert name in legend(figure)
    top, bottom = (axes.transData.transform((0, place))[1] for place in (0, 1))
    assert top > bottom


NAN = np.full(3, np.nan)
ODD = {
    "one point": lambda: plot_learning_curves([curve(x=ROUNDS[:1], mean=ROUNDS[:1])], "rounds", "x"),
    "no number of a curve": lambda: plot_learning_curves([Curve("a", NAN, NAN, NAN, NAN)], "rounds", "x"),
    "no number of a sweep": lambda: plot_sensitivity([Line("a", np.array([1.0, 20, 400]), NAN, NAN)], "x", "y"),
    "no number of a table": lambda: table(np.full((2, 2), np.nan)),
    "no number of the clients": lambda: plot_client_spread([Spread("a", *[np.nan] * 4)], "x"),
    "one cell": lambda: table([[0.5]], ["a"], ["x"]),
    "endless words": lambda: plot_heat_map(np.ones((1, 2)), ["a" * 300], ["b" * 300, "c"], "d", "e", "f" * 300),
    "glyphs": lambda: plot_learning_curves([curve("連合 学習")], "學", "習"),
}


@pytest.mark.parametrize("draw", ODD.values(), ids=ODD.keys())
def test_odd_data_are_drawn_without_a_warning(draw):
    figure = draw()
    pixels = image.imread(io.BytesIO(png(figure)))
    assert pixels.shape[:2] == tuple(int(150 * inches) for inches in (figure.get_figheight(), 6.3))
    assert pixels.min() < 0.2


def test_names_are_not_formulas():
    name = "$x_1$ _y_ $\\frac{"
    figures = [
        plot_learning_curves([curve(name)], name, name),
        plot_sensitivity([line([1, 100], name)], name, name),
        plot_heat_map(np.ones((1, 1)), [name], [name], name, name, name),
        plot_client_spread([Spread(name, 0.5, 0.1, 0.3, 0.2)], name),
    ]
    for figure in figures:
        texts = [text for text in figure.findobj(matplotlib.text.Text) if "x_1" in text.get_text()]
        assert len(texts) >= 2
        assert {text.get_text() for text in texts} == {name}
        assert not any(text.get_parse_math() for text in texts)
    assert legend(plot_learning_curves([curve("_a")], "x", "y")) == ["_a"]


def test_files_are_equal_whatever_the_users_settings(tmp_path):
    def draw():
        return plot_learning_curves([curve(), curve("fedprox", half_width=0.1)], "rounds", "eval/accuracy")

    before = dict(matplotlib.rcParams)
    save(draw(), tmp_path / "lr=0.1")
    assert dict(matplotlib.rcParams) == before
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["lr=0.1.pdf", "lr=0.1.png"]
    assert b"CreationDate" not in first["lr=0.1.pdf"]
    assert b"/CIDFontType2" in first["lr=0.1.pdf"] or b"/TrueType" in first["lr=0.1.pdf"]  # type 42, not 3
    assert b"Software" not in first["lr=0.1.png"]
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "axes.facecolor": "red"}):
        save(draw(), tmp_path / "lr=0.1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_a_figure_is_drawn_equally_each_time():
    figure = table([[1, np.nan], [2, 3]], columns=["c" * 50, "d"])
    first = png(figure)
    figure.savefig(io.BytesIO(), dpi=72)  # as for PDF; a second layout would move the axes
    assert png(figure) == first


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(Unwritable, match="cannot be written"):
        save(table([[1, 2], [3, 4]]), tmp_path / "missing" / "table")
