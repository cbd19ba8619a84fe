"""Variance partition against statsmodels and made-up data; labels and token vectors."""
import numpy as np
import pandas as pd
import pytest
import torch

from spatial_circuits.analyses.factors import labels, partition, relation_effects, token_vectors
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.scenes import RELATIONS
from spatial_circuits.text.encoders import encoder


def made_up(n: int = 60, width: int = 5, seed: int = 0):
    """Unbalanced levels of two factors and vectors that depend on both."""
    rng = np.random.default_rng(seed)
    a, b = rng.choice(list("xyz"), n, p=[0.6, 0.3, 0.1]), rng.choice(list("uv"), n)
    vectors = {level: rng.normal(size=width) for level in "xyzuv"}
    x = np.stack([vectors[i] + 2 * vectors[j] for i, j in zip(a, b)]) + rng.normal(size=(n, width))
    return torch.from_numpy(x), {"a": list(a), "b": list(b)}


def test_shares_agree_with_statsmodels():
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm
    x, factors = made_up()
    found = partition(x, factors, n_perm=10).table
    frame = pd.DataFrame(factors)
    tables = [anova_lm(smf.ols("y ~ C(a, Sum) + C(b, Sum)", frame.assign(y=column)).fit(), typ=2)["sum_sq"] for column in x.T.numpy()]
    squares, total = sum(tables), float(((x - x.mean(0)) ** 2).sum())
    for factor in "ab":
        ss = squares[f"C({factor}, Sum)"]
        assert found.loc[factor, "partial_r2"] == pytest.approx(ss / total)
        assert found.loc[factor, "partial_eta2"] == pytest.approx(ss / (ss + squares["Residual"]))


def test_effects_sum_to_zero_and_agree_with_statsmodels():
    import statsmodels.formula.api as smf
    x, factors = made_up()
    found = partition(x, factors, n_perm=2)
    fit = smf.ols("y ~ C(a, Sum) + C(b, Sum)", pd.DataFrame(factors).assign(y=x[:, 0].numpy())).fit()
    assert found.mean[0].item() == pytest.approx(fit.params["Intercept"])
    assert found.effects["a"]["x"][0].item() == pytest.approx(fit.params["C(a, Sum)[S.x]"])
    for effects in found.effects.values():
        assert sum(effects.values()).abs().max() < 1e-5


def test_what_depends_on_nothing_is_not_significant_and_what_does_is():
    x, factors = made_up(seed=3)
    noise = {**factors, "c": list(np.random.default_rng(9).choice(list("pq"), len(x)))}
    p = partition(x, noise, n_perm=200).table["p"]
    assert p["a"] == p["b"] == pytest.approx(1 / 201) and p["c"] > 0.02


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = [partition(torch.from_numpy(rng.normal(size=(30, 3))), {"a": list(rng.choice(list("xy"), 30))}, 99, seed).table["p"]["a"]
         for seed in range(60)]
    assert 0.35 < np.mean(p) < 0.65


def test_a_nested_factor_explains_nothing_of_its_own():
    x, factors = made_up()
    nested = {**factors, "ab": [i + j for i, j in zip(factors["a"], factors["b"])]}
    assert partition(x, nested, n_perm=2).table["partial_r2"][["a", "b"]].max() < 1e-9


@pytest.mark.parametrize("factors, message", [({"a": ["x"]}, "1 labels for 60"), ({"a": ["x"] * 60}, "single level")])
def test_labels_that_do_not_fit_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        partition(made_up()[0], factors)


def test_vectors_that_do_not_vary_are_refused():
    with pytest.raises(ValueError, match="do not vary"):
        partition(torch.ones(60, 4), made_up()[1])


def test_prompts_give_labels_by_role():
    prompt = "red square is above blue circle"
    assert labels([prompt], "shape2") == {"relation": ["above"], "own object": ["blue circle"], "other shape": ["square"]}
    assert labels([prompt], "shape1") == {"relation": ["above"], "own object": ["red square"], "other shape": ["circle"]}
    with pytest.raises(ValueError, match="no factors for role 'end'"):
        labels([prompt], "end")
    with pytest.raises(ValueError, match="does not say"):
        labels(["square is above blue circle"])


def test_random_tokens_hold_no_relation_but_for_their_place():
    """Without a position code an object's token is the same in every prompt; with it, a phrase's length shifts it."""
    prompts = prompt_set("264")
    x = token_vectors(encoder("rte-nopos"), prompts, "shape2")
    table = partition(x, labels(prompts), n_perm=20).table
    assert table["partial_r2"]["relation"] < 1e-9 and table["partial_r2"]["own object"] > 0.3
    shifted = partition(token_vectors(encoder("rte"), prompts, "shape2"), labels(prompts), n_perm=20).table
    assert shifted["partial_r2"]["relation"] > 1e-4


def test_effects_of_relations_come_in_their_order():
    prompts = prompt_set("264")
    found = partition(token_vectors(encoder("rte"), prompts, "relation"), labels(prompts, "relation"), n_perm=2)
    effects = relation_effects(found)
    assert effects.shape == (8, 128) and torch.equal(effects[2], found.effects["relation"][RELATIONS[2]])


def test_a_prompt_without_the_role_is_refused():
    with pytest.raises(ValueError, match="no token of role shape2"):
        token_vectors(encoder("rte"), ["red square is above blue"], "shape2")


def test_screening_finds_a_planted_ramp_and_no_other(lively):
    from spatial_circuits.analyses.factors import screen_effects
    from spatial_circuits.analyses.weight_maps import queries
    from spatial_circuits.data.scenes import OFFSETS
    model = lively()
    q = queries(model)[1, 0]                                                                  # [N, d] of head L1H0
    side = torch.linspace(-1, 1, 8)
    places = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).flatten(0, 1)         # [N, 2]
    keys = torch.linalg.lstsq(q - q.mean(0), places).solution @ torch.as_tensor(OFFSETS).float().T          # [d, 8]
    w = model.transformer_blocks[1].attn2.to_k.weight[:8]                                     # keys of head 0
    table = screen_effects(model, 50 * torch.linalg.lstsq(w, keys).solution.T, 200)
    assert table["name"][0] == "L1H0" and table["cosine"][0] > 0.5 and table["p"][0] < 0.05
    flat = screen_effects(model, torch.randn(1, 16).expand(8, 16), 50)                                # one effect for all: nothing to find
    assert flat["projection"].abs().max() < 1e-4


def test_the_partition_of_264_prompts_agrees_with_statsmodels(rte):
    pytest.importorskip("statsmodels")
    import statsmodels.api as sm
    prompts = prompt_set("264")[:120]
    x, factors = token_vectors(rte, prompts, "shape2")[:, :3], labels(prompts, "shape2")
    found = partition(x, factors, 1)
    import numpy as np
    import pandas as pd
    design = lambda names: sm.add_constant(np.hstack([pd.get_dummies(factors[f], drop_first=True, dtype=float).to_numpy() for f in names]))
    explained = lambda names: sum(sm.OLS(y, design(names)).fit().ess for y in x.double().numpy().T)
    rest = [f for f in factors if f != "relation"]
    total = float(((x - x.mean(0)) ** 2).sum())
    assert found.table.loc["relation", "partial_r2"] == pytest.approx((explained(list(factors)) - explained(rest)) / total, abs=1e-6)


def test_a_relation_that_no_prompt_says_has_no_effect():
    x, factors = made_up()
    with pytest.raises(ValueError, match="no prompt says the relation above: its effect is unknown"):
        relation_effects(partition(x, {"relation": factors["a"]}, n_perm=0))


@pytest.mark.parametrize("x, factors, message", [
    (torch.full((60, 4), torch.nan), {"a": list("xy") * 30}, "not all finite"), (torch.ones(60, 4), {}, "no factor"),
    (torch.ones(0, 4), {"a": []}, "single level")])
def test_what_cannot_be_partitioned_is_refused(x, factors, message):
    with pytest.raises(ValueError, match=message):
        partition(x, factors)
