"""Pictures of trainings and of evaluated checkpoints, and the theme they share."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from figures import HOSTILE, assert_inert

from npr_lib import viz
from npr_lib.analysis import metrics
from npr_lib.analysis.metrics import Estimate
from npr_lib.viz import theme
from npr_lib.viz.curves import smooth


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    def evaluation(seed: int, wide: bool) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        rows = [
            {
                "problem_id": f"p{problem}",
                "sample": sample,
                "temperature": temperature,
                "accuracy": float(rng.random() < 0.3 + 0.4 * wide),
                "text": rf"\boxed{{{rng.integers(3)}}}",
                "valid": True,
                "triggered": wide,
                "num_branches": [2, 2, 3] if wide else [],
                "branch_lengths": [[4, 8]] if wide else [],
                "work": int(rng.integers(40, 90)),
                "span": 40,
            }
            for problem in range(20)
            for temperature, samples in ((1.0, 4), (0.0, 1))
            for sample in range(samples)
        ]
        df = pd.DataFrame(rows).assign(max_branches=5, max_depth=1, spelled=[()] * len(rows))
        df["text"] = [r"\boxed{r}" if a else t for a, t in zip(df.accuracy, df.text, strict=True)]
        return df

    return {"SR": evaluation(0, wide=False), "NPR": evaluation(1, wide=True)}


def figures_of(frames: dict[str, pd.DataFrame], name: str) -> dict[str, go.Figure]:
    """Every figure, with `name` wherever a name is free."""
    log = pd.DataFrame({"step": range(1, 30), "reward": np.linspace(0, 1, 29), "accuracy": 0.5})
    frames = {name: frames["SR"], "NPR": frames["NPR"]}
    return {
        "curves": viz.curves({name: log, "NPR": log}, ["reward", "accuracy"], name),
        "ladder": viz.ladder(metrics.ladder(frames, resamples=50)),
        "paired": viz.paired({name: Estimate(0.1, 0.02, 0.2)}, name),
        "speed": viz.speed({name: 1.3, "batch 8": 0.9}, 1.6),
        "lengths": viz.lengths(frames),
        "branches": viz.branches(frames),
        "adaptivity": viz.adaptivity({key: divided() for key in frames}),
    }


def divided() -> pd.DataFrame:
    """Two problems: three independent parts, and a chain of two beside an independent one."""
    wide, deep = (3, 3), (2, 2)
    rows = [
        dict(problem_id="a", independent=3, depth=1, blocks=(wide,)),
        dict(problem_id="a", independent=3, depth=1, blocks=((3, 1), (2, 2))),
        dict(problem_id="b", independent=2, depth=2, blocks=(deep, (1, 1))),
        dict(problem_id="b", independent=2, depth=2, blocks=()),
    ]
    return pd.DataFrame(rows)


def test_adaptivity_shows_first_blocks_and_depths() -> None:
    figure = viz.adaptivity({"before": divided(), "after": divided()})
    width, depth = (
        [trace for trace in figure.data if trace.name == "after" and trace.xaxis == axis]
        for axis in ("x", "x2")
    )
    assert [t.y.tolist() for t in (*width, *depth)] == [[1.0, 2.0], [1.5, 1.0]]
    assert [t.x.round().tolist() for t in (*width, *depth)] == [[2, 3], [1, 2]]
    guides = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert [(tuple(g.x), tuple(g.y)) for g in guides] == [((2, 3), (2, 3)), ((1, 2), (1, 2))]


def test_figures_fetch_nothing_and_show_hostile_text_as_text(frames) -> None:
    assert_inert(figures_of(frames, HOSTILE))


def test_figures_have_titles_and_named_axes(frames) -> None:
    for name, figure in figures_of(frames, "SR").items():
        assert re.match(r"<b>\w.+</b>", figure.layout.title.text), name
        assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)", name
        assert list(figure.select_xaxes())[-1].title.text, name
        if name == "curves":  # the panels' headings name the quantities
            assert [note.text for note in figure.layout.annotations] == [
                "<b>mean reward</b>",
                "<b>accuracy</b>",
            ]
        else:  # a quantity, or rows with names
            axis = figure.layout.yaxis
            assert axis.title.text or axis.ticktext, name


# ------------------------------------------------------------------ trainings and checkpoints


def test_curves_skip_holes_and_label_the_end() -> None:
    log = pd.DataFrame(
        {"step": range(1, 41), "accuracy": [0.25, None] * 20, "loss": np.arange(40) / 10}
    )
    raw, strong, *_ = viz.curves(log, ["accuracy", "loss"], "SR").data
    assert list(raw.x) == list(range(1, 41, 2))
    assert set(strong.y) == {0.25}
    assert strong.text[-1] == "25%" and set(strong.text[:-1]) == {""}
    figure = viz.curves({"SR": log, "NPR": log.drop(columns="accuracy")}, ["accuracy", "loss"], "t")
    assert [trace.name for trace in figure.data if trace.showlegend] == ["SR", "NPR"]
    with pytest.raises(ValueError, match="'reward'"):
        viz.curves(log, ["reward"], "SR")
    with pytest.raises(ValueError, match=r"without the column 'step': \['SR'\]"):
        viz.curves({"SR": log.drop(columns="step")}, ["loss"], "t")


def test_a_model_that_was_not_trained_has_no_curve() -> None:
    log, empty = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}), pd.DataFrame()
    figure = viz.curves(empty, ["loss"], "seed")
    assert not figure.data and "not trained" in figure.layout.title.text
    figure = viz.curves({"seed": empty, "SR": log}, ["loss"], "t")
    assert {trace.name for trace in figure.data if trace.name} == {"SR"}


def test_smoothing_keeps_level_and_trend_and_takes_noise() -> None:
    line = np.arange(100.0)
    np.testing.assert_allclose(smooth(line)[10:-10], line[10:-10])
    noise = np.random.default_rng(0).normal(size=300)
    assert smooth(noise).std() < 0.35 * noise.std()
    assert smooth(np.array([1.0])) == [1.0]


def test_ladder_shows_the_table(frames) -> None:
    table = metrics.ladder(frames, resamples=50)
    figure = viz.ladder(table, ["avg", "trigger_rate"])
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [p.name for p in points] == ["T = 1", "greedy"] * 2
    rows = table[(table["metric"] == "avg@4") & (table["temperature"] == 1)]
    np.testing.assert_allclose(points[0].x, 100 * rows["value"])
    np.testing.assert_allclose(points[0].x + points[0].error_x.array, 100 * rows["high"])
    np.testing.assert_allclose(points[0].x - points[0].error_x.arrayminus, 100 * rows["low"])
    assert list(figure.layout.yaxis.ticktext) == ["SR", "NPR"]
    assert "20 problems, 4 samples at T = 1, 1 sample greedy" in figure.layout.title.text
    for wrong in ("span", "nonsense"):
        with pytest.raises(ValueError, match=wrong):
            viz.ladder(table, [wrong])


def test_table_is_the_ladder_turned_round(frames) -> None:
    numbers = metrics.ladder(frames, resamples=50)
    shown = viz.table(numbers)
    assert list(shown.index) == [
        *(("SR", "T = 1"), ("SR", "greedy"), ("NPR", "T = 1"), ("NPR", "greedy"))
    ]
    assert list(shown.columns[:3]) == ["avg@4 (%)", "avg@1 (%)", "best@4 (%)"]
    one = numbers[(numbers["checkpoint"] == "NPR") & (numbers["metric"] == "avg@4")].iloc[0]
    expected = f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    assert shown.loc[("NPR", "T = 1"), "avg@4 (%)"] == expected
    assert shown.loc[("NPR", "T = 1"), "span"] == "40.0 [40.0, 40.0]"
    assert shown.loc[("SR", "T = 1"), "balance"] == "–"
    assert shown.loc[("SR", "T = 1"), "avg@1 (%)"] == "–"


def test_paired_greys_what_holds_zero() -> None:
    figure = viz.paired(
        {
            "up": Estimate(0.1, 0.02, 0.2),
            "down": Estimate(-0.1, -0.2, -0.02),
            "flat": Estimate(0.01, -0.1, 0.1),
        }
    )
    colors = [trace.marker.color for trace in figure.data]
    assert colors == [theme.BLUE, theme.VERMILLION, theme.INK]
    assert figure.layout.annotations[1].text == "−10.0 [−20.0, −2.0]"
    assert figure.layout.xaxis.range[0] < -20 and figure.layout.xaxis.range[1] > 20


def test_speed_shows_both_and_their_ratio() -> None:
    figure = viz.speed({"batch 1": 1.2, "batch 8": 0.8}, {"batch 8": 1.6, "batch 1": 1.5})
    ideal, measured = figure.data
    assert list(ideal.x) == [1.5, 1.6] and list(measured.x) == [1.2, 0.8]
    assert [a.text for a in figure.layout.annotations] == [
        "<b>1.20×</b> of 1.50×  (80%)",
        "<b>0.80×</b> of 1.60×  (50%)",
    ]
    with pytest.raises(ValueError, match="ideals for"):
        viz.speed({"batch 1": 1.2}, {"batch 8": 1.6})
    with pytest.raises(ValueError, match="positive"):
        viz.speed({"batch 1": 0.0}, 1.6)


def test_distributions_count_everything(frames) -> None:
    for bar in viz.lengths(frames, "work").data:
        assert sum(bar.y) == pytest.approx(100)
    layers = {bar.name: list(bar.x) for bar in viz.branches(frames).data}
    assert layers["1"] == [0, 0]
    assert layers["2"] == pytest.approx([0, 200 / 3])
    assert layers["3"] == pytest.approx([0, 100 / 3])
    notes = [note.text for note in viz.branches(frames).layout.annotations]
    assert notes == ["no block", "300 blocks"]


# ------------------------------------------------------------------ theme


def test_theme_is_legible_on_light_and_dark() -> None:
    for page in ("#ffffff", "#111111"):
        assert theme.contrast(theme.INK, page) > 4.2
        for color in (*theme.SERIES, *theme.KINDS.values()):
            assert theme.contrast(color, page) > 2
        for color in theme.SERIES[:4]:
            assert theme.contrast(color, page) > 3
    for color in (*theme.SERIES, *theme.KINDS.values()):
        assert theme.contrast(theme.text_on(color), color) > 4.5
        assert theme.contrast(theme.BLACK, theme.tint(color)) > 10
    assert len(set(theme.KINDS.values())) == len(theme.KINDS)
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)
