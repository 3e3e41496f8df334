"""Figures: what is drawn is what the DataFrame says, bytes repeat, text does not overlap, errors
name the columns.
"""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from companion.report import palette, plots, plots_claims, report  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def curves() -> pd.DataFrame:
    rows = [
        (start, seed, epoch, 0.1 * epoch + 0.01 * seed + (start == "lookup") * 0.05)
        for start in ("random", "lookup")
        for seed in range(3)
        for epoch in (1, 2, 3)
    ]
    return pd.DataFrame(rows, columns=["start", "seed", "epoch", "ndcg@5"])


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_colours_are_fixed_for_systems_and_occur_once():
    known = palette.COLOURS | palette.PEERS
    everything = [*known.values(), *palette.OTHERS]
    assert len(set(everything)) == len(everything)
    assert set(report.ORDER) <= set(known)
    assert plots.colours(["lookup", "SVM"]) == {"lookup": "#de8f05", "SVM": "#5b3a8e"}
    strangers = plots.colours(["a", "random", "b", "a"])
    assert list(strangers) == ["a", "random", "b"]
    assert [strangers["a"], strangers["b"]] == list(palette.OTHERS[:2])


# linear RGB as people without green or red cones see it (Machado et al. 2009)
SEEN = {
    "as it is": np.eye(3),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
}


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as somebody sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = matrix @ np.clip(seen @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", SEEN)
def test_the_colours_of_starts_can_be_told_apart(eyes):
    seen = {name: lab(colour, SEEN[eyes]) for name, colour in palette.COLOURS.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, (eyes, one, other)


@pytest.mark.parametrize("name", palette.COLOURS)
def test_the_colours_of_starts_are_seen_on_white(name):
    light = lab(palette.COLOURS[name], np.eye(3))[0]
    assert light < 77, light


def test_learning_curves_draw_means_and_seed_bands():
    ax = plots.learning_curves(curves())
    by_name = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(by_name["lookup"].get_ydata(), [16, 26, 36])
    assert by_name["random"].get_color() == plots.COLOURS["random"]
    assert [line.get_label() for line in ax.lines] == ["lookup", "random"], "best at the end first"
    band = ax.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose((band[:, 1].min(), band[:, 1].max()), (10, 32))


def test_start_comparison_draws_intervals_without_the_baseline():
    nan = float("nan")
    table = pd.DataFrame(
        {
            "p@1 diff": [nan, 0.02, -0.01],
            "p@1 low": [nan, 0.01, -0.03],
            "p@1 high": [nan, 0.03, 0.01],
        },
        index=["random", "l2r", "v1"],
    )
    ax = plots.start_comparison(table.loc[["random", "v1", "l2r"]])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["l2r", "v1"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 3])
    np.testing.assert_allclose(ax.lines[3].get_xdata(), [-1])
    assert "above random" in ax.get_xlabel()


def test_bucket_bars_are_means_over_runs():
    frame = pd.DataFrame(
        {
            "system": ["random", "random", "l2r"],
            "few/rp@5": [0.1, 0.3, None],
            "medium/rp@5": [0.4, 0.4, 0.5],
            "head/rp@5": [0.6, 0.8, 0.9],
        }
    )
    heights = [bar.get_height() for bar in plots.bucket_bars(frame).patches]
    np.testing.assert_allclose(heights, [20, 40, 70, np.nan, 50, 90])


def test_long_tail_counts_every_label_once():
    counts = [0, 0, 1, 5, 6, 50, 51, 900]
    ax = plots.long_tail(pd.DataFrame({"count": counts}))
    assert texts(ax) == ["few: 2 labels", "medium: 2 labels", "head: 2 labels"]
    assert ax.get_title() == "8 labels, 2 without a training document"
    assert ax.lines[0].get_ydata().tolist() == [900, 51, 50, 6, 5, 1]


def test_teacher_tokens_shows_the_best_of_each_label():
    rows = [(label, f"{label}{i}", i / 10) for label in "ab" for i in range(5)]
    ax = plots.teacher_tokens(
        pd.DataFrame(rows, columns=["label", "token", "score"]), ["b", "a"], top=2
    )
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b4", "b3", "a4", "a3"] and texts(
        ax
    ) == ["b", "a"]
    with pytest.raises(ValueError, match="no teacher tokens for z"):
        plots.teacher_tokens(pd.DataFrame(rows, columns=["label", "token", "score"]), ["z"])


def test_attention_strip_darkens_by_weight_and_breaks_lines():
    ax = plots.attention_strip(["heart", "failure", "of", "$5"], [4, 2, 0, -1], columns=14)
    assert [bar.get_alpha() for bar in ax.patches] == pytest.approx([0.9, 0.45, 0, 0])
    assert [round(text.get_position()[1]) for text in ax.texts] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="2 tokens and 1 weights"):
        plots.attention_strip(["a", "b"], [1])


def test_memory_law_is_log_log_with_sorted_lines():
    frame = pd.DataFrame(
        {
            "implementation": ["plain"] * 2 + ["fused"] * 2,
            "labels": [100, 10, 10, 100],
            "memory_mb": [50.0, 5, 1, 2],
        }
    )
    ax = plots_claims.memory_law(frame)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.lines[0].get_xdata().tolist() == [10, 100] and ax.lines[0].get_ydata().tolist() == [
        5,
        50,
    ]


def test_kernel_times_draw_what_fits():
    frame = pd.DataFrame(
        {
            "implementation": ["plain", "fused", "fused"],
            "shape": ["L=9", "L=9", "L=99"],
            "forward_ms": [3.0, 1, 2],
            "both_ms": [9.0, 4, 8],
        }
    )
    ax = plots_claims.kernel_times(frame)
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights[2:] == [[4, 8], [1, 2]] and heights[0][0] == 9 and np.isnan(heights[0][1])
    assert ax.get_yscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == [
        "L=9",
        "L=99",
    ]


def test_data_flow_names_every_step_without_overlap():
    ax = plots.data_flow()
    ax.figure.canvas.draw()
    words = [text for text in ax.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in words]
    for (first, a), (second, b) in itertools.combinations(zip(words, boxes, strict=True), 2):
        assert not a.overlaps(b), f"{first.get_text()!r} overlaps {second.get_text()!r}"
    frames = [
        patch.get_window_extent()
        for patch in ax.patches
        if patch.__class__.__name__ == "FancyBboxPatch"
    ]
    assert len(frames) == 12
    for box in boxes:
        owners = [f for f in frames if f.overlaps(box)]
        assert all(
            f.x0 < box.x0 and box.x1 < f.x1 and f.y0 < box.y0 and box.y1 < f.y1 for f in owners
        )
        assert len(owners) <= 1
    steps = {"text", "X, Y", "C = X'Y", "I", "G", "L2R", "Q", "LabelDecoder", "logits", "metrics"}
    assert steps <= {text.get_text() for text in words}


def test_method_figure_draws_what_the_library_computes():
    """The words of heart failure alone in its column of G; softmax of 4 G over the document, worked
    by hand.
    """
    from companion.report.figures import example

    counts, relevance, attention = example()
    assert counts.loc["breathless"].tolist() == [2, 1, 0] and counts.loc["fever"].tolist() == [
        0,
        3,
        0,
    ]
    assert (relevance > 0).sum().max() <= 3 and relevance.loc["swollen", "heart failure"] == 1
    assert relevance.loc["at"].max() == 0, (
        "as frequent with the label as without it: no token to look at"
    )
    weights = np.exp(4 * np.array([relevance.at["breathless", "heart failure"], 0, 0, 0, 1, 1]))
    np.testing.assert_allclose(attention["planted"], weights / weights.sum())
    np.testing.assert_allclose(attention["random"], 1 / 6)


def test_method_figure_titles_and_words_do_not_overlap():
    figure = plots.method_figure().figure
    figure.canvas.draw()
    assert len(figure.axes) == 4
    words = [t for ax in figure.axes for t in (ax._left_title, ax.xaxis.label, *ax.texts)]
    words += [label for ax in figure.axes[:2] for label in ax.get_xticklabels()] + figure.axes[
        0
    ].get_yticklabels()
    words += figure.axes[2].get_yticklabels() + figure.axes[2].legend_.texts
    boxes = [(t.get_text(), t.get_window_extent()) for t in words if t.get_text()]
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{first!r} overlaps {second!r}"
    bars = figure.axes[2].legend_.get_window_extent()
    assert not any(patch.get_window_extent().overlaps(bars) for patch in figure.axes[2].patches)
    width = figure.get_window_extent().x1
    assert all(0 <= box.x0 and box.x1 <= width for _, box in boxes)


def test_missing_columns_are_named():
    with pytest.raises(
        ValueError, match="expected rows with start, seed, epoch, ndcg@5; got 1 rows with .'a'."
    ):
        plots.learning_curves(pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match="got 0 rows"):
        plots_claims.memory_law(pd.DataFrame(columns=["implementation", "labels", "memory_mb"]))


def test_saved_bytes_repeat_and_the_figure_is_closed(tmp_path):
    first, second = (
        plots.save(plots.learning_curves(curves()), tmp_path / name) for name in ("a.png", "b.png")
    )
    assert first.read_bytes() == second.read_bytes() and b"Software" not in first.read_bytes()
    assert not plt.get_fignums() and sorted(p.name for p in tmp_path.iterdir()) == [
        "a.png",
        "b.png",
    ]
    assert plt.imread(first).shape[:2] == (480, 768)


def test_a_small_copy_keeps_the_colours(tmp_path):
    from PIL import Image

    path = plots.save(plots.learning_curves(curves()), tmp_path / "figure.png")
    (tmp_path / "small.png").write_bytes(plots.small(path, 300))
    with Image.open(tmp_path / "small.png") as small:
        assert small.width == 300
        pixels = np.asarray(small.convert("RGB")).reshape(-1, 3).astype(int)
    assert (tmp_path / "small.png").stat().st_size < path.stat().st_size
    for colour in (plots.COLOURS["lookup"], plots.COLOURS["random"]):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(pixels - wanted).sum(1).min() < 40, colour


def test_drawing_into_given_axes():
    _, axes = plt.subplots(1, 2)
    assert plots.learning_curves(curves(), ax=axes[1]) is axes[1] and not axes[0].lines


def test_reliability_shows_scores_against_shares_of_right_labels():
    raw = np.array([[0.4, 0.1, 90.0], [0.6, 1.0, 10.0]])
    calibrated = np.array([[0.1, 0.1, 90.0], [0.9, 1.0, 10.0]])
    ax = plots_claims.reliability({"raw": raw, "calibrated": calibrated})
    diagonal, *lines = (line for line in ax.lines if line.get_linestyle() != "None")
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [100, 100]])
    for line, parts in zip(lines, (raw, calibrated), strict=True):
        np.testing.assert_allclose(line.get_xydata(), 100 * parts[:, :2])
        assert line.get_color() == plots.COLOURS["linear"]
    assert [line.get_linestyle() for line in lines] == ["--", "-"]
    # two standard errors of 9 right ones of 90, and no whisker where all are right
    whiskers = [c.get_segments() for c in ax.collections]
    np.testing.assert_allclose(whiskers[0][0][:, 1], 10 + np.array([-2, 2]) * 30 / 90**0.5)
    np.testing.assert_allclose(whiskers[0][1][:, 1], [100, 100])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["score = share right", "raw", "calibrated"]
    assert ax.get_title().endswith("?") and ax.get_xlabel() and ax.get_ylabel()


def test_coverage_shows_promises_against_what_was_kept():
    promised = np.array([0.5, 0.9])
    kept = np.array([[0.4, 0.8], [0.6, 1.0], [0.5, 0.9]])
    ax = plots_claims.coverage(promised, kept, system="SVM")
    diagonal, line = (line for line in ax.lines if line.get_linestyle() != "None")
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [100, 100]])
    np.testing.assert_allclose(line.get_xydata(), [[50, 50], [90, 90]])
    whisker = ax.collections[0].get_segments()[0]
    np.testing.assert_allclose(whisker[:, 1], [42, 58])
    assert ax.get_title().endswith("?") and ax.get_xlabel() and ax.get_ylabel()
    with pytest.raises(ValueError, match="give .draws, promises."):
        plots_claims.coverage(promised, kept[:, :1])


@pytest.mark.parametrize("lines", [{}, {"raw": np.zeros((0, 3))}])
def test_reliability_refuses_a_line_without_predictions(lines):
    with pytest.raises(ValueError, match=f"got {len(lines)} lines"):
        plots_claims.reliability(lines)


@pytest.mark.parametrize(
    "name", ["$\\frac{", "$\\frac{$", "$x$", "a $ b $ \\badcommand", "100 %", "_x", "\\$"]
)
def test_names_of_users_are_no_formulas(name):
    """Such a name is an error of mathtext, at the moment the figure is drawn."""
    frame = pd.DataFrame({"label": [name] * 2, "token": [name, "word"], "score": [0.5, 0.2]})
    about = {"places": [1, 2], "counts": [3, 1], "labels": 2, "synthetic": False}
    for ax in (
        plots.teacher_tokens(frame, [name], top=2),
        plots.attention_strip([name, "word"], [0.3, 0.7], name),
        plots_claims.long_tails({f"a{name}": about}),
    ):
        ax.figure.canvas.draw()
        texts = [text.get_text() for text in ax.findobj(Text)]
        assert any(name in text.replace(r"\$", "$") for text in texts), "the name is shown"


def test_effects_stand_in_the_row_and_panel_of_their_name():
    frame = pd.DataFrame(
        [("a", "whole", 0.1, 0.0, 0.2), ("a", "part", 0.05, 0.01, 0.1), ("b", "part", -1, -2, 0)],
        columns=["panel", "effect", "value", "low", "high"],
    )
    first, second = plots_claims.effect_panels(frame, "gain").figure.axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["whole", "part"]
    assert first.lines[0].get_xydata().tolist() == [[10, 0], [5, 1]]
    assert second.get_title() == "b" and second.lines[0].get_xydata().tolist() == [[-100, 1]]
    ends = second.collections[0].get_segments()[0][:, 0]
    assert ends.tolist() == [-200, 0]
    with pytest.raises(ValueError, match="high"):
        plots_claims.effect_panels(frame.drop(columns="high"), "gain")
