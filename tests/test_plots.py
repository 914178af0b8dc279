"""Every figure shows what its numbers say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from isometry import compare, measure, networks, plots
from isometry.networks import importances
from isometry.plots.colors import distinct_colors
from tests.models import normed_conv, wide_net


@pytest.fixture(autouse=True)
def close() -> object:
    yield
    plt.close("all")


def test_spectra_are_densities_with_the_isometry_line() -> None:
    reports = {
        name: measure(networks.build(name, seed=0), torch.randn(16, 1, 32, 32))
        for name in ("mlp-7-relu", "lenet-5-relu")
    }
    ax = plots.spectrum(reports)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert [t.split(",")[0] for t in texts] == ["mlp-7-relu", "lenet-5-relu", "isometry"]
    stairs = [p for p in ax.patches if hasattr(p, "get_data")]
    values, edges, _ = stairs[0].get_data()
    assert ax.get_xscale() == "log"
    assert float((values * np.diff(np.log10(edges))).sum()) == pytest.approx(1, abs=1e-6)


def test_a_narrow_spectrum_far_from_one_is_resolved() -> None:
    layer = torch.nn.Linear(20, 20)
    layer.weight.data = torch.linalg.qr(torch.randn(20, 20)).Q * torch.linspace(1e-5, 2e-5, 20)[:, None]
    ax = plots.spectrum(measure(layer, torch.randn(3, 20)))
    values, edges, _ = next(patch for patch in ax.patches if hasattr(patch, "get_data")).get_data()
    assert sum(values > 0) > 15
    assert edges[0] < 1e-5 < 2e-5 < edges[-1] < 3e-5
    assert ax.get_xlim()[1] > 1


def test_densities_on_given_axes_have_the_isometry_line_at_one() -> None:
    linear = plots.spectrum(measure(torch.nn.Linear(4, 4), torch.randn(3, 4)), plt.subplots()[1])
    assert linear.lines[0].get_xdata()[0] == 1


def test_trajectories_draw_the_mean_and_spread_over_seeds() -> None:
    table = pd.DataFrame(
        {"epoch": [0, 1, 0, 1] * 2, "seed": [0, 0, 1, 1] * 2, "method": ["L1"] * 4 + ["L1 + oracle"] * 4,
         "mean_jsv": [0.1, 0.2, 0.3, 0.4, 1, 1, 1, 1], "accuracy": np.linspace(0.1, 0.8, 8)}
    )  # fmt: skip
    ax = plots.trajectory(table)
    assert ax.lines[0].get_ydata() == pytest.approx([0.2, 0.3])
    assert (ax.lines[0].get_linestyle(), ax.lines[1].get_linestyle()) == ("-", "--")
    assert ax.lines[0].get_color() == ax.lines[1].get_color() == plots.color("L1")
    assert ax.get_yscale() == "log"
    assert plots.trajectory(table, y="accuracy").get_yscale() == "linear"
    assert plots.sweep(table, x="epoch").get_ylabel() == "mean JSV"


def test_comparisons_have_intervals_and_can_be_saved(tmp_path: Path) -> None:
    nets = {"dense": networks.build("mlp-7-relu", seed=0), "L1": networks.build("mlp-7-relu", seed=1)}
    ax = plots.comparison(compare(nets, torch.randn(8, 1, 32, 32)))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["dense", "L1"]
    ax.figure.savefig(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_bars_far_below_the_isometry_line_are_drawn_on_a_logarithmic_axis_with_it() -> None:
    means = [2e-3, 4e-4]
    table = pd.DataFrame({"network": ["a", "b"], "mean_jsv": means, "interval_low": means, "interval_high": means})
    ax = plots.comparison(table)
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "log"
    assert low < min(means) / 2
    assert high > 1


def test_methods_keep_their_color() -> None:
    assert plots.color("TPP") == plots.color("tpp + oracle") == plots.color("TPP, 0.9")
    assert len({plots.color(n) for n in ("dense", "random", "L1", "GReg", "TPP", "scratch")}) == 6
    assert plots.color("my net") == plots.color("my net")


def test_names_of_one_method_have_different_colors_in_one_figure() -> None:
    names = ["L1 0.5", "L1 0.7", "L1", "ab", "ba", *(f"TPP {index}" for index in range(20))]
    colors = distinct_colors(names)
    assert len(set(colors.values())) == len(names)
    assert colors["L1"] == plots.color("L1")
    assert list(colors) == names


def test_what_is_repaired_shares_the_color_where_it_is_dashed_only() -> None:
    names = ["L1 0.5", "L1 0.7", "L1 0.7 + oracle", "mine + repair", "mine"]
    dashed = distinct_colors(names, dashed=True)
    assert dashed["L1 0.7 + oracle"] == dashed["L1 0.7"] != dashed["L1 0.5"]
    assert dashed["mine + repair"] == dashed["mine"]
    assert len(set(distinct_colors(names).values())) == 5


def long_table() -> pd.DataFrame:
    """Two ratios of two methods, one of them repaired, and the dense network."""
    rows: list[dict[str, object]] = [{"trial": "dense", "method": "dense", "ratio": 0.0, "phase": "dense", "epoch": 9,
                                      "mean_jsv": 5.0, "accuracy": 0.9}]  # fmt: skip
    for method, ratio in (("L1", 0.5), ("L1", 0.7), ("L1 + oracle", 0.5), ("L1 + oracle", 0.7)):
        phases = [("pruned", 0), *([("repaired", 0)] if "+" in method else []), *(("finetune", e) for e in range(1, 6))]
        for phase, epoch in phases:
            start = {"pruned": 0.0 if ratio == 0.7 else 0.1, "repaired": 1.0}.get(phase, 2.0)
            rows.append({"trial": f"{method}-{ratio}", "method": method, "ratio": ratio, "phase": phase, "epoch": epoch,
                         "mean_jsv": start, "accuracy": ratio / 2 + epoch / 20, "evaluated_on": "training data"})  # fmt: skip
    return pd.DataFrame(rows)


def lines(ax: plt.Axes) -> dict[str, object]:
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def test_a_long_table_is_drawn_by_what_it_says_before_and_after_fine_tuning() -> None:
    ax = plots.sweep(long_table())
    assert ax.get_ylabel() == "mean JSV, just before fine-tuning"
    drawn = lines(ax)
    assert list(drawn["L1 + oracle"][0].get_ydata()) == [1.0, 1.0]
    assert list(drawn["L1"][0].get_xdata()) == [0.5, 0.7]
    assert list(drawn["at the lower end: 0"].get_xdata()) == [0.7]
    assert list(drawn["dense"].get_ydata()) == [5.0, 5.0]
    after = plots.sweep(long_table(), y="accuracy")
    assert list(lines(after)["L1"][0].get_ydata()) == pytest.approx([0.5, 0.6])
    assert after.get_ylabel() == "accuracy on the training data, fine-tuned"


def test_trajectories_of_several_ratios_are_lines_of_their_own_with_a_legend() -> None:
    ax = plots.trajectory(long_table())
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["L1, 0.5", "L1, 0.7", "L1, 0.5 + oracle", "L1, 0.7 + oracle", "dense"]
    drawn = lines(ax)
    assert drawn["L1, 0.5"].get_color() == drawn["L1, 0.5 + oracle"].get_color() != drawn["L1, 0.7"].get_color()
    assert drawn["L1, 0.5 + oracle"].get_ydata()[0] == 1.0


@pytest.mark.parametrize(
    ("last", "ticks"), [(0, [0]), (1, [0, 1]), (5, [0, 1, 2, 3, 4, 5]), (90, [0, 1, 3, 10, 30, 90])]
)
def test_epochs_have_their_ticks(last: int, ticks: list[int]) -> None:
    table = pd.DataFrame({"epoch": range(last + 1), "method": "L1", "mean_jsv": 1.0})
    ax = plots.trajectory(table)
    ax.figure.canvas.draw()
    assert [t for t in ax.get_xticks() if 0 <= t <= last] == ticks
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["L1"]


def test_layers_are_drawn() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    report = measure(net, torch.randn(4, 1, 32, 32), layers=True)
    ax = plots.layers({"dense": report, "other": report})
    assert [t.get_text() for t in ax.get_xticklabels()] == ["conv1", "conv2", "conv3", "fc1", "fc2"]


def test_the_reference_of_a_report_is_drawn() -> None:
    dense, x = networks.build("lenet-5-relu", seed=0), torch.randn(4, 1, 32, 32)
    report = measure(networks.build("lenet-5-relu", seed=1), x, layers=True, reference=dense)
    assert report.reference is not None
    for draw in (plots.spectrum, plots.layers):
        for given, names in (
            (report, ["dense", "network"]),
            ({"L1": report}, ["dense", "L1"]),
            ({"dense": report}, ["dense"]),
        ):
            texts = [t.get_text().split(",")[0] for t in draw(given).get_legend().get_texts()]
            assert sorted(texts) == sorted([*names, "isometry"])
    lines = [line for line in plots.layers(report).lines if line.get_label() != "isometry"]
    heights = [list(line.get_ydata()) for line in lines if len(line.get_ydata()) == 5]
    assert list(report.reference.layers["mean_jsv"]) in heights


def test_layers_are_drawn_at_the_place_of_their_name() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    whole, part = (measure(net, torch.randn(4, 1, 32, 32), layers=names).layers for names in (True, ["fc*"]))
    ax = plots.layers({"whole": whole, "part": part})
    places = {tuple(line.get_xdata()) for line in ax.lines}
    assert (3, 4) in places


def test_a_report_without_layers_is_refused() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    with pytest.raises(ValueError, match="layers=True"):
        plots.layers(measure(net, torch.randn(4, 1, 32, 32)))


def test_the_histogram_of_importances_marks_the_threshold() -> None:
    model = normed_conv()
    for logarithmic in (False, True):
        ax = plots.importances(model, threshold=0.5, logarithmic=logarithmic)
        share = float((torch.cat(list(importances(model).values())) < 0.5).double().mean())
        assert ax.get_legend().get_texts()[0].get_text() in ("32 units", f"threshold, {share:.0%} below")
        assert sum(patch.get_height() for patch in ax.patches) == 32
        assert ax.get_xscale() == ("log" if logarithmic else "linear")


def test_brackets_are_drawn_next_to_exact_spectra() -> None:
    net, x = wide_net(200), torch.randn(12, 3, 16, 16)
    ax = plots.spectrum({"exact": measure(net, x, method="exact"), "krylov": measure(net, x)})
    assert len(ax.get_legend().get_texts()) == 3


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plots\.trajectory\(\) got a table with 0 rows"):
        plots.trajectory(pd.DataFrame())


def test_a_table_without_the_columns_is_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match=r"the columns a; it takes a DataFrame .* network, mean_jsv"):
        plots.comparison(pd.DataFrame({"a": [1]}))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        pytest.param(
            lambda: plots.sweep(None), r"plots\.sweep\(\) got a NoneType; it takes a DataFrame", id="no table"
        ),
        pytest.param(lambda: plots.layers("x"), r"plots\.layers\(\) got a str; it takes", id="no layers"),
        pytest.param(lambda: plots.spectrum("x"), r"plots\.spectrum\(\) got a str of no spectra; .*e\.g\.", id="text"),
        pytest.param(
            lambda: plots.spectrum({"a": wide_net(200)}),
            r"got a dict of Sequential; it takes a report .*e\.g\.",
            id="network",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()  # before a figure is opened
    assert not plt.get_fignums()


def test_outcomes_are_one_point_per_fine_tuned_trial() -> None:
    rows = [
        {"trial": f"{method}-{lr}", "method": method, "lr": lr, "phase": phase, "epoch": epoch,
         "mean_jsv": jsv, "accuracy": jsv / 4 + epoch / 10}
        for method, jsv in (("L1", 0.1), ("L1 + oracle", 1.0), ("TPP", 3.0)) for lr in (0.01, 0.001)
        for phase, epoch in (("pruned", 0), ("finetune", 1), ("finetune", 2))
    ]  # fmt: skip
    unfinished = {**rows[0], "trial": "not fine-tuned"}
    ax = plots.outcome(pd.DataFrame([*rows, unfinished]))
    assert ax.get_title() == "one point per trial; rank correlation 1.00, n = 6"
    drawn = np.concatenate([points.get_offsets() for points in ax.collections if len(points.get_offsets())])
    assert sorted(drawn[:, 1]) == pytest.approx([0.225] * 2 + [0.45] * 2 + [0.95] * 2)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["lr 0.01", "lr 0.001", "open: repaired"]
    with pytest.raises(ValueError, match=r"plots\.outcome\(\) got a table with 0 rows"):
        plots.outcome(pd.DataFrame())
