"""A report's figures: they show the given data, curves are distinguishable, and equal figures are equal files."""

import io
import runpy
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from fedresearch.drawings import curves, forest, heat_map, ranking, sensitivity, spread, trajectories
from fedresearch.drawings.paper import apart, read, saved, wrap
from fedresearch.drawings.picture import concatenated
from fedresearch.runs.pictures import confusion_picture, heterogeneity, partition_picture
from fedresearch.study.report.arms import COLOURS, DASHES, GREY, MARKERS
from fedresearch.study.report.redrawing import as_csv, script

ROUNDS = np.arange(1.0, 6)
LONG = "strategy=fedprox, proximal_mu=0.01, partitioner=dirichlet, alpha=0.1"
PAGE = {"width": 6.3, "font": ["DejaVu Sans"]}
AXES = {"x_label": "Round", "y_label": "y", "scale": 1, "limits": [None, None], "title": None, **PAGE}


def looks(labels, num_highlighted=5):
    return {
        label: {"colour": COLOURS[n % 7], "dash": DASHES[n % 4], "marker": MARKERS[n % 8], "is_highlighted": True}
        if n < num_highlighted
        else {"colour": GREY, "dash": (), "marker": "", "is_highlighted": False}
        for n, label in enumerate(labels)
    }


def curve(arm="fedavg", x=ROUNDS, y=ROUNDS / 10, half_width=0.05, seed="", panel=""):
    band = {"low": y - half_width, "high": y + half_width}
    return {"panel": panel, "arm": arm, "seed": seed, "x": x, "y": np.asarray(y), **band}


def curve_inputs(lines, **spec):
    labels = [*dict.fromkeys(line["arm"] for line in lines)]
    panels = [*dict.fromkeys(line["panel"] for line in lines)]
    known = {"panels": panels, "arms": looks(labels), "x_unit": "", "unseen": 0.05, "targets": [], **AXES, **spec}
    return concatenated(lines, ("panel", "arm", "seed", "x", "y", "low", "high")), known


def plot_curves(lines, **spec):
    return curves.draw(*curve_inputs(lines, **spec))


def means(axes):
    return [line for line in axes.lines if line.get_linewidth() == 1.3]


def line(x, arm="fedavg", y=0.5, half_width=0.1):
    return {"arm": arm, "x": np.array(x, dtype=float), "y": y, "half_width": half_width}


def plot_sensitivity(lines, **spec):
    arms = looks([each["arm"] for each in lines], 8)
    return sensitivity.draw(concatenated(lines, ("arm", "x", "y", "half_width")), {"arms": arms, **AXES, **spec})


def plot_heat_map(values, rows, cols, row_label="lr", col_label="epochs", title="accuracy", half_width=np.nan):
    places = [
        {"row": row, "col": col, "value": value, "half_width": half_width}
        for row, of_row in zip(rows, values, strict=True)
        for col, value in zip(cols, of_row, strict=True)
    ]
    spec = {"row_label": row_label, "col_label": col_label, "title": title, "scale": 1, **PAGE}
    return heat_map.draw(concatenated(places, ("row", "col", "value", "half_width")), spec)


def table(values, rows=("a", "b"), columns=("x", "y")):
    return plot_heat_map(np.array(values, dtype=float), rows, columns)


def plot_spread(spreads, **spec):
    rows = [dict(zip(("row", "mean", "std", "tenth", "worst"), each, strict=True)) for each in spreads]
    return spread.draw(concatenated(rows, ("row", "mean", "std", "tenth", "worst")), {**AXES, **spec})


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def extents(texts):
    return [text.get_window_extent() for text in texts]


def test_a_curve_is_the_known_mean_with_a_band_around_it():
    mean = np.array([0.1, np.nan, 0.3, np.nan, 0.5])
    (axes,) = plot_curves([curve(y=mean)]).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(1, 0.1), (3, 0.3), (5, 0.5)])
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.round(9).tolist()}
    assert corners == {(x, round(y + w, 9)) for x, y in [(1, 0.1), (3, 0.3), (5, 0.5)] for w in (-0.05, 0.05)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Round", "y")
    bottom, top = axes.get_ylim()
    assert bottom <= 0.1
    assert top >= 0.55


def test_shares_are_per_cent_and_bands_end_where_they_can_be():
    (axes,) = plot_curves([curve(half_width=1.0)], scale=100, limits=[0, 1]).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [10, 20, 30, 40, 50])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, 100)


@pytest.mark.parametrize(("limits", "y", "top"), [([0, 1], 0.9, 1.02), ([None, None], 0.9, 1.9), ([0, 1], 50.0, 51.0)])
def test_the_axis_ends_where_accuracies_end(limits, y, top):
    (axes,) = plot_curves([curve(y=np.full(5, y), half_width=1.0)], limits=limits).axes
    assert axes.get_ylim()[1] == pytest.approx(top, rel=0.1)
    (axes,) = plot_sensitivity([line([1, 2], y=y, half_width=1.0)], limits=limits).axes
    assert axes.get_ylim()[1] == pytest.approx(top, rel=0.1)
    assert axes.get_ylim()[1] >= top or top == 1.02


def test_bars_of_a_sensitivity_end_where_the_metric_can_be():
    (axes,) = plot_sensitivity([line([1, 2], y=0.9, half_width=0.3)], scale=100, limits=[0, 1]).axes
    bars = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()]
    np.testing.assert_allclose(bars, [[60, 100]] * 2)


def test_the_first_rounds_do_not_squeeze_the_axis():
    x = np.arange(0.0, 101)
    (axes,) = plot_curves([curve(x=x, y=np.where(x < 5, 0.1, 0.8 + x / 1000))]).axes
    assert axes.get_ylim()[0] > 0.7


def test_each_panel_has_its_arms_and_one_scale():
    lines = [curve(arm, panel=panel, y=ROUNDS * slope) for slope, panel in ((1, "a"), (3, "b")) for arm in ("x", "y")]
    lines += [curve("x", panel="b", seed=seed, half_width=np.nan) for seed in ("0", "1")]
    figure = plot_curves(lines)
    left, right = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ["a", "b"]
    assert [len(axes.lines) for axes in (left, right)] == [2, 4]
    assert len(means(right)) == 2
    assert left.get_ylim() == right.get_ylim()
    assert (left.get_ylabel(), right.get_ylabel()) == ("y", "")
    assert legend(figure) == ["x", "y"]


def test_names_stand_at_the_ends_of_lines_without_overlap():
    figure = plot_curves([curve(f"arm {n}", y=ROUNDS / 10 + n / 1000) for n in range(4)])
    assert not figure.legends
    boxes = sorted(map(Text.get_window_extent, figure.axes[0].texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.width


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.52, 0.5, 0.5], [0.6067, 0.4067, 0.5067]),  # their mean stays
        ([1.0, 0.99], [1.0, 0.9]),
        ([0.0, 0.0], [0.0, 0.1]),
    ],
)
def test_places_are_moved_as_little_as_need_be(places, moved):
    np.testing.assert_allclose(apart(np.array(places), 0.1, 0, 1), moved, atol=1e-4)


def bars(counts, title="iid, seed 0"):
    return partition_picture(np.array(counts), title, PAGE).figure


def test_a_partition_is_a_bubble_for_each_class_of_a_client():
    (axes,) = bars([[3, 1, 0], [0, 2, 5]]).axes
    (bubbles,) = axes.collections
    np.testing.assert_array_equal(bubbles.get_offsets(), [(0, 0), (0, 1), (1, 1), (1, 2)])
    np.testing.assert_allclose(bubbles.get_sizes() / bubbles.get_sizes().max(), [0.6, 0.2, 0.4, 1])
    assert axes.get_xlabel() == "Client"


def test_many_clients_are_a_stack_of_classes():
    figure = bars(np.tile([[3, 1, 0], [0, 2, 5]], (30, 1)))
    layers = [[(bar.get_y(), bar.get_height()) for bar in layer][:2] for layer in figure.axes[0].containers]
    assert layers == [[(0, 3), (0, 0)], [(3, 1), (0, 2)], [(4, 0), (2, 5)]]
    assert legend(figure) == ["class 0", "class 1", "class 2"]


def test_many_clients_are_cut_and_many_classes_have_a_colour_scale():
    figure = bars(np.ones((120, 62), np.int64), "femnist")
    assert figure.axes[0].get_xlabel() == "Client (100 of 120)"
    assert (len(figure.legends), figure.axes[1].get_ylabel()) == (0, "class")


@pytest.mark.parametrize(
    ("counts", "distances"),
    [
        ([[5, 5], [1, 1], [0, 0]], (0, 0)),
        # Against (1/2, 1/2), (1, 0) has divergence (log2(4/3) + (log2(2/3) + log2 2) / 2) / 2 = 0.3113.
        ([[4, 0], [0, 4]], (0.3113**0.5, 1)),
    ],
)
def test_heterogeneity_is_the_distance_of_class_shares(counts, distances):
    assert heterogeneity(np.array(counts)) == pytest.approx(distances, abs=1e-4)


def test_differences_stand_in_their_panels_with_intervals():
    rows = [("a", "x", 0.01, 0.02), ("a", "y", -0.03, 0.01), ("b", "x", 0.0, np.nan)]
    names = ("panel", "arm", "difference", "half_width")
    data = concatenated([dict(zip(names, row, strict=True)) for row in rows], names)
    spec = {"panels": ["a", "b"], "arms": looks(["x", "y"]), "x_label": "d", "y_label": "", "scale": 100, **PAGE}
    left, right = forest.draw(data, spec).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["x", "y"]
    drawn = [container[0].get_xydata().tolist() for container in left.containers]
    assert drawn == [[[1, 0]], [[-3, 1]]]
    np.testing.assert_allclose(left.containers[0][2][0].get_segments(), [[[-1, 0], [3, 0]]])
    assert len(right.containers) == 1
    assert [(text.get_text(), text.get_position()[1]) for text in right.texts] == [("no run", 1)]
    assert left.get_xlim() == right.get_xlim()


def test_a_single_run_has_no_band():
    (axes,) = plot_curves([curve(half_width=np.nan)]).axes
    assert not axes.collections


def test_arms_are_distinguishable_without_colours():
    figure = plot_curves([curve(f"arm {n}", panel=panel) for n in range(5) for panel in "ab"])
    lines = figure.axes[0].lines
    assert legend(figure) == [f"arm {n}" for n in range(5)]
    assert len({each.get_marker() for each in lines}) == 5
    assert len({(each.get_color(), str(each._unscaled_dash_pattern)) for each in lines}) == 5
    assert max(each.get_markevery()[0] for each in lines) < len(ROUNDS)  # so that each has a marker


def test_arms_that_are_not_highlighted_are_grey_and_counted():
    figure = plot_curves([curve(f"{LONG} {n}") for n in range(40)])
    assert len(figure.axes[0].lines) == 40
    assert sum(each.get_color() == GREY for each in figure.axes[0].lines) == 35
    assert legend(figure)[-1] == "35 others"
    axes, below = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert 0 <= below.y0 < below.y1 < axes.y0
    assert 0 <= below.x0 < below.x1 <= figure.bbox.width


@pytest.mark.parametrize(("targets", "name"), [([0.95], "target 0.95"), ([0.6, 0.95], "targets 0.6, 0.95")])
def test_a_target_is_a_separate_line(targets, name):
    figure = plot_curves([curve(panel="a"), curve(panel="b")], targets=targets)
    assert legend(figure) == ["fedavg", name]
    assert [set(line.get_ydata()) for line in figure.axes[0].lines[1:]] == [{target} for target in targets]
    assert figure.axes[0].get_ylim()[1] > 0.95
    assert name in [text.get_text() for text in plot_curves([curve()], targets=targets).axes[0].texts]


def test_bytes_have_their_unit_and_rounds_are_whole():
    (axes,) = plot_curves([curve(x=ROUNDS * 1e6)], x_unit="B").axes
    assert [axes.xaxis.get_major_formatter()(x) for x in (2e3, 3e6, 1.5e9)] == ["2 kB", "3 MB", "1.5 GB"]
    (axes,) = plot_curves([curve(x=ROUNDS[:2], y=ROUNDS[:2])]).axes
    assert all(tick.is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.01, 0.2], "log"), ([0.01, 0.19], "linear"), ([0, 1, 100], "linear"), ([-1, 100], "linear"), ([3], "linear")],
)
def test_the_axis_is_logarithmic_from_a_factor_of_20(values, scale):
    (axes,) = plot_sensitivity([line(values)]).axes
    assert axes.get_xscale() == scale


def test_a_sensitivity_is_a_line_with_error_bars_and_ticks_at_the_values():
    lines = [
        line([0.001, 0.01, 0.1], "epochs=1", np.array([0.5, 0.7, 0.6]), np.array([0.1, 0.2, np.nan])),
        line([0.01], "epochs=5", np.array([0.9]), np.array([np.nan])),
    ]
    figure = plot_sensitivity(lines)
    (axes,) = figure.axes
    for given, (drawn, _, (bars,)) in zip(lines, axes.containers, strict=True):
        np.testing.assert_array_equal(drawn.get_xydata(), np.column_stack([given["x"], given["y"]]))
        ends = [segment[:, 1] for segment in bars.get_segments() if len(segment)]
        expected = [(m - w, m + w) for m, w in zip(given["y"], given["half_width"], strict=True) if np.isfinite(w)]
        np.testing.assert_allclose(np.reshape(ends, (-1, 2)), np.reshape(expected, (-1, 2)))
    assert legend(figure) == ["epochs=1", "epochs=5"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.01", "0.1"]


def test_ticks_without_room_are_left_out():
    figure = plot_sensitivity([line(np.geomspace(0.00123, 1, 40))])
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
    assert not table(np.full((1, 30), 0.5), rows=["a"], columns=[*map(str, range(30))]).axes[0].texts


def test_short_labels_of_many_columns_are_left_out_rather_than_on_each_other():
    axes, _ = table(np.full((1, 62), 0.5), rows=["a"], columns=[*map(str, range(62))]).axes
    labels = axes.get_xticklabels()
    assert {label.get_rotation() for label in labels} == {0}
    assert 5 < len(labels) < 62
    assert all(left.x1 < right.x0 for left, right in pairwise(extents(labels)))
    assert [label.get_text() for label in labels] == [f"{place:g}" for place in axes.get_xticks()]


def test_shares_in_many_columns_lose_a_digit_before_they_become_small():
    def texts(num):
        parts = {"row": ["a"] * num, "col": [*map(str, range(num))], "value": np.full(num, 0.606)}
        spec = {"row_label": "", "col_label": "", "title": "", "scale": 100, **PAGE}
        axes, *_ = heat_map.draw({**parts, "half_width": np.full(num, 0.01)}, spec).axes
        return {text.get_text() for text in axes.texts}, min([text.get_fontsize() for text in axes.texts], default=8)

    # A column is 5.03 inches / num wide, of which texts take 0.8; at 8 points, a character takes 0.07 inches.
    expected = {8: {"60.6 ± 1.0"}, 9: {"60.6"}, 19: {"60.6"}, 20: {"61"}, 51: {"61"}, 52: set()}
    assert {num: texts(num)[0] for num in expected} == expected
    assert min(texts(num)[1] for num in expected) >= 4.5


def plot_confusion(counts, columns=None):
    return confusion_picture(counts, "", {**PAGE, "columns": columns, "grid": None}).figure


def test_a_confusion_matrix_has_shares_of_each_true_class_in_square_cells():
    counts = np.array([[199, 1, 0], [30, 30, 940], [0, 0, 0]])
    figure = plot_confusion({"a": counts, "b": counts.T})
    first, second = figure.axes
    assert {text.get_position(): text.get_text() for text in first.texts} == {
        (0, 0): "100",
        (0, 1): "3",
        (1, 1): "3",
        (2, 1): "94",
    }
    assert [text.get_color() for text in first.texts] == ["white", "black", "black", "white"]  # half a per cent is none
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    saved(figure, "png", PAGE)  # the axes become square while a figure is saved
    box = second.get_window_extent()
    assert box.width == pytest.approx(box.height)
    assert (first.get_ylabel(), figure.get_supxlabel() or first.get_xlabel()) == ("True class", "Predicted class")


@pytest.mark.parametrize("num_panels", range(1, 6))
@pytest.mark.parametrize("num_classes", [1, 10, 60])
def test_no_label_of_confusion_matrices_is_cut_off(num_panels, num_classes):
    counts = np.ones((num_classes, num_classes), int)
    figure = plot_confusion({f"FedProx (μ = {n})": counts for n in range(num_panels)}, columns=min(num_panels, 3))
    saved(figure, "png", PAGE)
    drawn = figure.get_tightbbox()
    assert min(drawn.min) > -0.01
    assert (drawn.max < figure.get_size_inches() + 0.01).all()
    panels = figure.axes[:num_panels]
    assert {*np.mod(panels[0].get_yticks(), 1)} == {0}
    if num_panels == 4:  # in two columns: titles alone are between the rows
        assert panels[0].get_window_extent().y0 - panels[2].get_window_extent().y1 < 0.4 * figure.dpi


@pytest.mark.parametrize(("num_classes", "has_numbers"), [(10, True), (100, False)])
def test_confusion_matrices_have_numbers_where_they_can_be_read_and_else_a_scale(num_classes, has_numbers):
    counts = np.full((num_classes, num_classes), 1)
    figure = plot_confusion({f"FedProx (μ = {n})": counts for n in range(5)}, columns=5)
    panels, others = figure.axes[:5], figure.axes[5:]
    assert {bool(axes.texts) for axes in panels} == {has_numbers}
    assert [axes.get_ylabel() for axes in others] == [] if has_numbers else ["Share of the true class (%)"]
    if has_numbers:
        cell = panels[0].get_window_extent().width / num_classes
        assert max(box.width for box in extents(panels[0].texts)) < cell
    labels = extents([label for label in panels[0].get_xticklabels() if label.get_text()])
    assert all(left.x1 < right.x0 for left, right in pairwise(labels))


@pytest.mark.parametrize(("p10", "worst", "name"), [(0.3, 0.1, "10th percentile"), (0.8, 0.9, "90th percentile")])
def test_a_spread_shows_mean_deviation_tenth_percentile_and_worst(p10, worst, name):
    figure = plot_spread([("a", 0.5, 0.1, p10, worst), ("b", 0.6, 0.2, p10, worst)])
    (axes,) = figure.axes
    assert [list(each.get_xdata()) for each in axes.lines] == [[0.5, 0.6], [p10, p10], [worst, worst]]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.containers[0]]
    np.testing.assert_allclose(bars, [(0.4, 0.6), (0.4, 0.8)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert name in legend(figure)
    top, bottom = (axes.transData.transform((0, place))[1] for place in (0, 1))
    assert top > bottom


def test_a_heat_map_has_intervals_where_there_is_room():
    (wide, _), (narrow, _) = (
        plot_heat_map(np.full((1, n), 0.5), ["a"], [*map(str, range(n))], half_width=0.01).axes for n in (2, 16)
    )
    assert [text.get_text() for text in wide.texts] == ["0.500 ± 0.0100"] * 2
    assert [text.get_text() for text in narrow.texts] == ["0.500"] * 16


def plot_ranks(ranks, difference=1.0, **spec):
    arms = [f"{name} (μ = 0.01)" for name in "abcdefgh"[: len(ranks)]]
    data = {"arm": arms, "rank": np.array(ranks)}
    return ranking.draw(data, {"arms": looks(arms), "critical_difference": difference, **PAGE, **spec})


@pytest.mark.parametrize(
    ("ranks", "difference", "joined"),
    [
        ([1, 2, 3, 4], 1.9, [(0, 1), (1, 2), (2, 3)]),
        ([1, 1.5, 2, 5.5], 1.9, [(0, 2)]),
        ([1, 3, 3.1], 2.0, [(1, 2)]),  # a difference that is as large as the critical one is found
        ([1, 2], 0.5, []),
    ],
)
def test_ranks_that_do_not_differ_are_joined(ranks, difference, joined):
    assert ranking.groups_of(np.array(ranks), difference) == joined
    (axes,) = plot_ranks(ranks, difference).axes
    assert sum(each.get_linewidth() == 3 for each in axes.lines) == len(joined)


@pytest.mark.parametrize("width", [6.3, 3.25])
def test_names_of_ranks_do_not_overlap(width):
    figure = plot_ranks([1.2, 1.3, 2.5, 5.0, 5.0], width=width)
    boxes = extents(figure.axes[0].texts)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(0 <= box.x0 < box.x1 <= figure.bbox.width and box.y0 >= 0 for box in boxes)


def plot_trajectories(middle=0.5):
    lines = [
        (np.nan, middle, 0.1, 0.9),
        (0.0, 0.2, np.nan, np.nan),
        (1.0, np.array([0.4, np.nan, 0.6]), np.nan, np.nan),
    ]
    parts = [
        {"panel": panel, "arm": panel, "client": client, "x": ROUNDS[:3], "y": y, "low": low, "high": high}
        for panel in ("a", "b")
        for client, y, low, high in lines
    ]
    spec = {
        "panels": ["a", "b"],
        "columns": 2,
        "grid": None,
        "arms": looks(["a", "b"]),
        **AXES,
        "limits": [0, 1],
        "scale": 100,
    }
    return trajectories.draw(concatenated(parts, ("panel", "arm", "client", "x", "y", "low", "high")), spec)


@pytest.mark.parametrize("label", ["proximal_averaging_with_restarts", "long words " * 50, "key = " + "v" * 30])
def test_titles_of_panels_do_not_overlap_and_leave_room(label):
    figure = plot_curves([curve(panel=f"{label}{n}") for n in range(4)], columns=4, grid=None)
    saved(figure, "png", PAGE)
    boxes = extents([axes.title for axes in figure.axes])
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert figure.axes[0].get_window_extent().height > 0.7 * figure.dpi


def test_an_equation_stays_on_a_line_that_has_room_for_it():
    assert wrap("averaging (μ = 0.01)", 12, breaks_words=True) == "averaging\n(μ = 0.01)"
    assert wrap("proximal_mu = 0.01", 13, breaks_words=True) == "proximal_mu =\n0.01"
    assert wrap("proximal_mu = 0.01", 13) == "proximal_mu = 0.01"


def test_clients_are_thin_lines_behind_their_median():
    figure = plot_trajectories()
    left, right = figure.axes
    assert [each.get_ydata().tolist() for each in left.lines] == [[20, 20, 20], [40, 60], [50, 50, 50]]
    assert [each.get_linewidth() for each in left.lines] == [0.5, 0.5, 1.6]
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (10, 90)
    assert left.get_ylim() == right.get_ylim()
    assert legend(figure) == ["median client", "10th to 90th percentile", "each client"]


def test_the_only_arm_without_a_name_has_no_label():
    (axes,) = plot_curves([curve("")]).axes
    assert len(axes.lines) == 1
    assert not axes.texts


def test_a_name_at_the_top_of_an_axis_is_whole():
    figure = plot_curves([curve("a", y=np.ones(5)), curve("b", y=np.full(5, 0.2))], limits=[0, 1])
    (axes,) = figure.axes
    assert len(axes.texts) == 2
    height = figure.get_window_extent().height
    assert all(box.y0 >= 0 and box.y1 <= height for box in extents(axes.texts))


def test_few_grey_arms_are_named_in_the_legend():
    figure = plot_curves([curve(name) for name in "abcd"], arms=looks("abcd", 2))
    assert legend(figure) == ["a", "b", "c, d"]


NAN = np.full(3, np.nan)
ODD = {
    "one point": lambda: plot_curves([curve(x=ROUNDS[:1], y=ROUNDS[:1])]),
    "no number of a curve": lambda: plot_curves([curve("a", NAN, NAN)]),
    "no number of a sweep": lambda: plot_sensitivity([line([1.0, 20, 400], y=NAN)]),
    "no number of a table": lambda: table(np.full((2, 2), np.nan)),
    "no number of the clients": lambda: plot_spread([("a", *[np.nan] * 4)]),
    "no number of a client": lambda: plot_trajectories(NAN),
    "one cell": lambda: table([[0.5]], ["a"], ["x"]),
    "endless words": lambda: plot_heat_map(np.ones((1, 2)), ["a" * 300], ["b" * 300, "c"], "d", "e", "f" * 300),
    "glyphs": lambda: plot_curves([curve("連合 学習")], x_label="學", y_label="習"),
    "many panels": lambda: plot_curves([curve("a", panel=f"{LONG} {n}") for n in range(11)], width=3.25),
    "no sample": lambda: bars([[0, 0], [0, 0]]),
    "no test sample": lambda: plot_confusion({"a": np.zeros((2, 2), int)}),
    "confusion of one class": lambda: plot_confusion({"a": np.ones((1, 1), int)}),
    "confusion of a hundred": lambda: plot_confusion({f"{LONG} {n}": np.eye(100, dtype=int) for n in range(12)}, 5),
}


@pytest.mark.parametrize("draw", ODD.values(), ids=ODD.keys())
def test_odd_data_are_drawn_without_a_warning(draw):
    figure = draw()
    pixels = image.imread(io.BytesIO(saved(figure, "png", PAGE)))
    assert pixels.shape[1::-1] == pytest.approx(150 * figure.get_size_inches(), abs=1)
    assert pixels.min() < 0.2


def test_names_are_not_formulas():
    name = "$x_1$ _y_ $\\frac{"
    axes = {"x_label": name, "y_label": name}
    figures = [
        plot_curves([curve(name)], **axes),
        plot_sensitivity([line([1, 100], name)], **axes),
        plot_heat_map(np.ones((1, 1)), [name], [name], name, name, name),
        plot_spread([(name, 0.5, 0.1, 0.3, 0.2)], **axes),
    ]
    for figure in figures:
        texts = [text for text in figure.findobj(matplotlib.text.Text) if "x_1" in text.get_text()]
        assert len(texts) >= 2
        assert {text.get_text() for text in texts} == {name}
        assert not any(text.get_parse_math() for text in texts)
    assert legend(plot_sensitivity([line([1, 100], "_a")])) == ["_a"]


LINES = [
    curve("=fedavg", half_width=0.1 + 0.2),
    curve("'fedprox', μ", seed="0"),
    curve("'fedprox', μ", half_width=np.nan),
]


def test_a_figure_is_redrawn_from_its_csv_to_the_same_bytes_whatever_the_users_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    data, spec = curve_inputs(LINES)
    written = {form: saved(curves.draw(data, spec), form, spec) for form in ("png", "pdf")}
    assert dict(matplotlib.rcParams) == before
    (tmp_path / "lr=0.1.csv").write_text(as_csv(data))
    (tmp_path / "lr=0.1.py").write_text(script("lr=0.1", curves, spec))
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "axes.facecolor": "red"}):
        runpy.run_path(str(tmp_path / "lr=0.1.py"), run_name="__main__")
    assert {form: (tmp_path / f"lr=0.1.{form}").read_bytes() for form in written} == written
    assert "fedresearch" not in (tmp_path / "lr=0.1.py").read_text()
    assert b"CreationDate" not in written["pdf"]
    assert b"/CIDFontType2" in written["pdf"] or b"/TrueType" in written["pdf"]  # type 42, not 3
    assert b"Software" not in written["png"]


def test_a_script_that_names_another_arm_than_its_csv_says_so(tmp_path):
    data, spec = curve_inputs(LINES)
    (tmp_path / "a.csv").write_text(as_csv(data))
    (tmp_path / "a.py").write_text(script("a", curves, spec).replace("'=fedavg'", "'Ours'"))
    with pytest.raises(SystemExit, match=r"SPEC\['arms'\] does not have \['=fedavg'\] of the CSV; rename them in both"):
        runpy.run_path(str(tmp_path / "a.py"), run_name="__main__")


def test_a_csv_has_all_digits_and_no_formula(tmp_path):
    data, _ = curve_inputs(LINES)
    (tmp_path / "a.csv").write_text(as_csv(data))
    assert "\n,'=fedavg,,1," in (tmp_path / "a.csv").read_text()
    again = read(tmp_path / "a.csv")
    for name, column in data.items():
        np.testing.assert_array_equal(again[name], column)


def test_a_figure_is_drawn_equally_each_time():
    figure = table([[1, np.nan], [2, 3]], columns=["c" * 50, "d"])
    first = saved(figure, "png", PAGE)
    figure.savefig(io.BytesIO(), dpi=72)  # as for PDF; a second layout would move the axes
    assert saved(figure, "png", PAGE) == first
