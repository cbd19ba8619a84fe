"""Intervals: what is drawn, what comes out, and the same numbers as the formulas written out."""
import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from spatial_circuits.analyses.intervals import (
    bootstrap_means,
    bootstrap_weights,
    by_prompt,
    mean_interval,
    ratio_interval,
    summarise,
    wilson,
)


def synthetic(hits: np.ndarray) -> pd.DataFrame:
    """Frame of a bool array [prompts, images] as the metric `loose`; dx is NaN where False."""
    prompts = np.repeat([f"p{i}" for i in range(len(hits))], hits.shape[1])
    return pd.DataFrame({"prompt": prompts, "loose": hits.ravel(),
                         "dx": np.where(hits.ravel(), 2.0, np.nan)})


def test_summary_means_and_nan_counts():
    hits = np.array([[1, 1], [1, 0], [0, 0]], bool)
    table = summarise(synthetic(hits))
    assert table.loc["loose", ["mean", "n_prompts", "n_images", "n_nan"]].tolist() == [0.5, 3, 6, 0]
    columns = ["mean", "low", "high", "n_prompts", "n_images", "n_nan"]
    assert list(table.columns) == columns
    assert table.loc["dx", columns].tolist() == [2, 2, 2, 2, 3, 3]
    assert table.loc["loose", "low"] == 0 and table.loc["loose", "high"] == 1
    assert table.equals(summarise(synthetic(hits))) and list(table.index) == ["loose", "dx"]


def test_summary_of_one_prompt_or_only_nan_has_no_interval():
    one = summarise(synthetic(np.array([[True, False]])))
    assert one.loc["loose", "mean"] == 0.5 and one.loc["loose", ["low", "high"]].isna().all()
    none = summarise(synthetic(np.zeros((3, 2), bool)))
    assert none.loc["dx", ["mean", "low", "high"]].isna().all() and none.loc["dx", "n_nan"] == 6
    with pytest.raises(ValueError, match="'relation'"):
        summarise(synthetic(np.ones((2, 2), bool)), by="relation")
    with pytest.raises(ValueError, match="empty"):
        summarise(synthetic(np.ones((2, 2), bool)).iloc[:0])


def test_interval_resamples_prompts_not_images():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random((100, 1)) < 0.5, 16, axis=1)  # images of a prompt all agree
    table = summarise(synthetic(same)).loc["loose"]
    width = (table["high"] - table["low"]) / (2 * 1.96 * same[:, 0].std() / 10)
    assert width == pytest.approx(1, abs=0.1)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for k in range(100):
        chances = rng.beta(3, 1, (60, 1))  # mean 3/4, differs from prompt to prompt
        row = summarise(synthetic(rng.random((60, 4)) < chances), seed=k, n_boot=400).loc["loose"]
        covered += row["low"] <= 0.75 <= row["high"]
    assert 88 <= covered <= 100


def test_weights_are_the_multinomial_draws_of_a_seed_or_generator():
    wanted = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=50)
    assert (bootstrap_weights(7, 50, 3) == wanted).all() and (wanted.sum(1) == 7).all()
    rng = np.random.default_rng(3)
    assert (bootstrap_weights(7, 50, rng) == wanted).all()
    assert (bootstrap_weights(7, 50, rng) != wanted).any()
    with pytest.raises(ValueError, match="at least one cluster"):
        bootstrap_weights(0)


def test_means_and_ratios_are_those_of_the_formulas_written_out():
    rng = np.random.default_rng(0)
    values, base = rng.random((30, 4)), rng.random(30)
    weights = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=2000)
    wanted = np.percentile(weights / 30 @ values, [2.5, 97.5], axis=0)
    assert mean_interval(values, seed=5) == pytest.approx(wanted)
    ratio = np.percentile(weights @ values / (weights @ base)[:, None], [2.5, 97.5], axis=0)
    assert ratio_interval(values, base, seed=5) == pytest.approx(ratio)
    assert ratio_interval(values[:, 0], base, seed=5) == pytest.approx(ratio[:, 0])
    assert np.isnan(ratio_interval(values, np.zeros(30))).all()


def test_means_agree_with_scipy_s_bootstrap():
    values = np.random.default_rng(0).random(80)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile",
                       rng=np.random.default_rng(1))
    assert mean_interval(values, n_boot=4000) == pytest.approx(np.array(theirs.confidence_interval),
                                                               abs=0.01)


def test_rows_of_a_cluster_are_drawn_together():
    rng = np.random.default_rng(0)
    own = rng.random(40)
    assert mean_interval(np.repeat(own, 6),
                         np.repeat(np.arange(40), 6)) == pytest.approx(mean_interval(own))
    narrow = mean_interval(np.repeat(own, 6))
    assert np.ptp(narrow) < 0.5 * np.ptp(mean_interval(own))
    uneven, cluster = np.array([1.0, 1, 1, 0, np.nan]), ["a", "a", "a", "b", "b"]
    drawn = {round(x, 3) for x in bootstrap_means(uneven, cluster, 200)}
    assert drawn == {0, 0.75, 1}  # pictures count, not clusters
    with pytest.raises(ValueError, match="3 cluster labels for 2 rows"):
        mean_interval(own[:2], [0, 1, 2])


def test_summary_by_another_cluster_is_wider_where_prompts_belong_together():
    rng = np.random.default_rng(0)
    # 160 prompts, eight of each original
    frame = synthetic(np.repeat(rng.random((20, 1)) < 0.5, 8, axis=0))
    frame["original"] = np.repeat(np.arange(20), 8)
    prompts = summarise(frame).loc["loose"]
    originals = summarise(frame, cluster="original").loc["loose"]
    assert originals["high"] - originals["low"] > 2 * (prompts["high"] - prompts["low"])
    assert originals["n_prompts"] == 20 and originals["mean"] == prompts["mean"]
    with pytest.raises(ValueError, match="'nobody'"):
        summarise(frame, cluster="nobody")


def test_wilson_at_the_edges():
    assert wilson(44, 44) == pytest.approx((0.9197, 1), abs=1e-4)
    assert wilson(0, 44) == pytest.approx((0, 0.0803), abs=1e-4)
    from statsmodels.stats.proportion import proportion_confint
    assert wilson(30, 44) == pytest.approx(proportion_confint(30, 44, method="wilson"))
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            wilson(*bad)


@pytest.mark.parametrize("hit", [False, True])
def test_summary_with_edges_widens_only_means_of_0_or_1(hit):
    frame = synthetic(np.full((44, 2), hit)).assign(shape=np.arange(88) % 3 == 0, dx=1.0)
    plain, edges = summarise(frame), summarise(frame, edges=True)
    assert tuple(plain.loc["loose", ["low", "high"]]) == (hit, hit)
    # clusters, not pictures
    assert tuple(edges.loc["loose", ["low", "high"]]) == wilson(44 * hit, 44)
    assert plain.drop("loose").equals(edges.drop("loose"))  # a distance of 1 is no share


def test_cells_are_means_of_each_prompt_in_order():
    frame = pd.DataFrame({"prompt": ["b", "b", "a", "a", "b", "b"], "condition": ["x", "y"] * 3,
                          "loose": [True, False, True, True, False, False]})
    cells = by_prompt(frame, ["loose"])
    assert list(cells.index) == ["b", "a"]
    assert list(cells.columns) == [("loose", "x"), ("loose", "y")]
    assert cells.to_numpy().tolist() == [[0.5, 0], [1, 1]]
