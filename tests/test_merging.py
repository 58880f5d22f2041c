"""Merging is exact where it can be: at both ends, of equal models, in every storage type, in memory and by pieces."""

from __future__ import annotations

import pytest
import torch

from fac_lightning.merging import (
    DareMerge,
    LinearMerge,
    LMCocktailMerge,
    MergeMethod,
    SlerpMerge,
    TaskArithmeticMerge,
    TiesMerge,
    dare,
    ema,
    greedy_soup,
    linear_merge,
    lm_cocktail_weights,
    merge_state_dicts,
    slerp,
    task_arithmetic,
    ties,
    uniform_soup,
    weighted_mean,
)
from fac_lightning.weights import CheckpointError

METHODS = [
    LinearMerge(),
    SlerpMerge(),
    TaskArithmeticMerge(),
    TiesMerge(density=0.5),
    DareMerge(density=0.5),
]


def pair(dtype=torch.float32, shape=(6, 5), apart=0.1):
    base = torch.randn(shape)
    return base.to(dtype), (base + apart * torch.randn(shape)).to(dtype)


def bits(tensor):
    """Also tells 0 from -0."""
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [linear_merge, slerp])
def test_both_ends_are_the_models_bit_for_bit(function, dtype):
    base, tuned = pair(dtype)
    base[0, 0], tuned[0, 0] = -0.0, 0.0
    base[0, 1], tuned[0, 1] = 0.0, -0.0
    assert torch.equal(bits(function(base, tuned, 0.0)), bits(base))
    assert torch.equal(bits(function(base, tuned, 1.0)), bits(tuned))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_zero_is_the_base_and_equal_models_stay(method, dtype):
    base, tuned = pair(dtype)
    base[0, 0] = -0.0
    method = type(method)(alphas={"x": 0.0})
    assert torch.equal(bits(method.merge("x", base, [tuned])), bits(base))
    assert torch.equal(method.merge("y", base, [base.clone()]), base)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_nothing_that_is_given_is_changed_and_the_result_is_new(method):
    base, tuned = pair()
    before = base.clone(), tuned.clone()
    method.merge("x", base, [tuned]).fill_(7)
    assert torch.equal(base, before[0])
    assert torch.equal(tuned, before[1])


def test_linear_follows_the_equation_and_alpha_weighs_the_tuned_model():
    base, tuned = pair()
    torch.testing.assert_close(linear_merge(base, tuned, 0.25), 0.25 * tuned + 0.75 * base)
    assert linear_merge(torch.zeros(1), torch.ones(1), 0.3).item() == pytest.approx(0.3)
    assert linear_merge(torch.zeros(1), torch.ones(1), 1.5).item() == pytest.approx(1.5)


def test_arithmetic_is_float32_whatever_the_storage():
    base, tuned = pair(torch.bfloat16, (1000,))
    merged = linear_merge(base, tuned, 0.3)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.lerp(base.float(), tuned.float(), 0.3).bfloat16())
    assert not torch.equal(merged, base * 0.7 + tuned * 0.3)
    assert linear_merge(base.double(), tuned.double(), 0.3).dtype == torch.float64
    assert linear_merge(base.float(), tuned, 0.3).dtype == torch.bfloat16


def test_integers_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"floating point tensors can be merged, got torch\.int64"):
        linear_merge(torch.ones(2, dtype=torch.long), torch.ones(2), 0.5)
    with pytest.raises(ValueError, match=r"one shape can be merged, got \(2,\) and \(3,\)"):
        linear_merge(torch.ones(2), torch.ones(3), 0.5)


def test_slerp_keeps_the_length_and_halves_the_angle():
    base, tuned = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(base, tuned, 0.5), torch.full((2,), 0.5**0.5))
    torch.testing.assert_close(slerp(base, tuned, 1 / 3), torch.tensor([3**0.5 / 2, 0.5]))
    assert linear_merge(base, tuned, 0.5).norm() < 0.8


def test_slerp_of_parallel_or_empty_vectors_is_the_straight_line():
    base = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(slerp(base, 3 * base, 0.5), 2 * base)
    torch.testing.assert_close(slerp(base, -base, 0.25), 0.5 * base)
    torch.testing.assert_close(slerp(torch.zeros(2), base, 0.5), 0.5 * base)


def test_slerp_merges_one_model():
    with pytest.raises(ValueError, match="a base with one tuned model, got 2"):
        merge_state_dicts({"x": torch.ones(2)}, [{"x": torch.ones(2)}] * 2, SlerpMerge())


def test_task_arithmetic_adds_differences():
    base, a = pair()
    b = base + torch.randn(6, 5)
    torch.testing.assert_close(task_arithmetic(base, [a, b], 0.5), base + 0.5 * ((a - base) + (b - base)))
    torch.testing.assert_close(task_arithmetic(base, [a, b], 1.0, [1.0, -1.0]), base + a - b)


def test_ties_of_one_model_at_density_one_is_task_arithmetic():
    base, tuned = pair(shape=(200,))
    assert torch.equal(ties(base, [tuned], 1.0, 0.7), task_arithmetic(base, [tuned], 0.7))


def test_ties_trims_elects_and_averages_what_agrees():
    base = torch.zeros(4)
    a, b, c = (
        torch.tensor([1.0, -4.0, 3.0, 0.5]),
        torch.tensor([3.0, 5.0, -2.0, 0.1]),
        torch.tensor([2.0, 2.0, 1.0, 0.2]),
    )
    # place 0: all agree; 1: + wins 7 to 4; 2: a and c against b, 4 to 2; 3: trimmed away in every model
    torch.testing.assert_close(ties(base, [a, b, c], 0.75), torch.tensor([2.0, 3.5, 2.0, 0.0]))
    # with weights the mean is weighted too
    torch.testing.assert_close(ties(base, [a, b, c], 0.75, weights=[1, 1, 3])[0], torch.tensor((1 + 3 + 6) / 5))
    with pytest.raises(ValueError, match="must be positive"):
        ties(base, [a, b], 0.5, weights=[1, -1])


def test_ties_keeps_the_share_that_it_is_told_to():
    base, tuned = torch.zeros(1000), torch.randn(1000)
    kept = ties(base, [tuned], 0.2)
    assert (kept != 0).sum() == 200
    assert kept.abs().sum().item() == pytest.approx(tuned.abs().topk(200).values.sum().item())


def test_dare_keeps_the_expectation_and_rescales():
    base, tuned = torch.ones(200_000), torch.full((200_000,), 3.0)
    thinned = dare(base, tuned, 0.25, torch.Generator().manual_seed(0))
    assert set(thinned.tolist()) == {1.0, 9.0}  # 1 + 2 / 0.25
    assert (thinned != 1).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert thinned.mean().item() == pytest.approx(3.0, abs=0.03)


def test_dare_depends_on_seed_name_and_model_alone():
    base, tuned = torch.zeros(64), torch.ones(64)
    merge = DareMerge(seed=1).merge
    assert torch.equal(merge("x", base, [tuned]), DareMerge(seed=1).merge("x", base, [tuned]))
    assert not torch.equal(merge("x", base, [tuned]), DareMerge(seed=2).merge("x", base, [tuned]))
    assert not torch.equal(merge("x", base, [tuned]), merge("y", base, [tuned]))
    assert not torch.equal(merge("x", base, [tuned, base]), merge("x", base, [base, tuned]))
    assert torch.equal(DareMerge(density=1.0).merge("x", base, [tuned]), tuned)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_density_is_a_share(density):
    for make in (TiesMerge, DareMerge):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            make(density=density)


def test_a_soup_of_equals_is_the_model():
    model = {"w": torch.randn(50), "b": torch.randn(3).bfloat16(), "steps": torch.tensor(3)}
    for count in (1, 3, 7):
        soup = uniform_soup([{name: tensor.clone() for name, tensor in model.items()} for _ in range(count)])
        assert all(torch.equal(bits(soup[name]), bits(model[name])) for name in model)
    assert weighted_mean([torch.zeros(2), torch.ones(2)], [1, 3]).tolist() == [0.75, 0.75]


def test_a_soup_of_different_models_is_refused():
    with pytest.raises(ValueError, match="models 0 and 1 hold different tensors: b"):
        uniform_soup([{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}])
    with pytest.raises(ValueError, match=r"a is torch\.int64 and differs"):
        uniform_soup([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}])
    with pytest.raises(ValueError, match="not all be 0"):
        weighted_mean([torch.ones(1)], [0.0])


def test_greedy_soup_takes_what_helps():
    models = [{"w": torch.tensor([value])} for value in (4.0, 1.0, -1.5, 9.0)]
    tried = []

    def score(weights):
        tried.append(weights["w"].item())
        return -abs(weights["w"].item())

    soup = greedy_soup(models, score)
    assert soup.members == (1, 2)  # -0.25 is nearer to 0 than 1; with 4 or 9 it gets worse
    assert soup.weights["w"].item() == soup.score == -0.25
    assert len(tried) == 7


def test_ema_moves_by_what_is_left():
    average, current = torch.zeros(2), torch.ones(2)
    torch.testing.assert_close(ema(average, current, 0.9), torch.full((2,), 0.1))
    assert torch.equal(ema(average, current, 1.0), average)
    assert torch.equal(ema(average, current, 0.0), current)
    with pytest.raises(ValueError, match="between 0 and 1"):
        ema(average, current, 1.1)


def test_lm_cocktail_weights_are_a_softmax_of_losses():
    weights = lm_cocktail_weights([1.0, 2.0, 1.0], tau=5.0)
    assert weights == pytest.approx(torch.softmax(-torch.tensor([1.0, 2.0, 1.0]) / 5, 0).tolist())
    assert lm_cocktail_weights([1e6, 0.0], tau=0.1) == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="tau must be above 0"):
        lm_cocktail_weights([1.0], tau=0)


def test_lm_cocktail_mixes_target_base_and_others():
    base, target, other = torch.randn(3, 4)
    method = LMCocktailMerge(losses=[1.0, 3.0], alpha=0.5, tau=2.0)
    first, second = lm_cocktail_weights([1.0, 3.0], 2.0)
    expected = 0.5 * target + 0.5 * (first * base + second * other)
    torch.testing.assert_close(method.merge("x", base, [target, other]), expected)
    with pytest.raises(ValueError, match="2 losses are given but 1 are needed"):
        method.check(1)


def test_linear_of_several_models_mixes_their_mean():
    base, a, b = torch.randn(3, 4)
    merged = LinearMerge(0.5, weights=[1, 3]).merge("x", base, [a, b])
    torch.testing.assert_close(merged, 0.5 * base + 0.5 * (a + 3 * b) / 4)
    assert torch.equal(LinearMerge(1.0).merge("x", base, [a, a]), a)
    with pytest.raises(ValueError, match="1 weights are given but 2 tuned models"):
        LinearMerge(weights=[1.0]).check(2)


# state dicts: which tensor comes from where


def llm(rows=8, dim=4, tied=True):
    state = {
        "model.embed_tokens.weight": torch.randn(rows, dim),
        "model.layers.0.mlp.weight": torch.randn(dim, dim),
        "model.layers.1.mlp.weight": torch.randn(dim, dim),
        "model.norm.weight": torch.randn(dim),
    }
    return state if tied else state | {"lm_head.weight": torch.randn(rows, dim)}


def speech(base, rows=8, dim=4):
    """The LLM trained further, inside a model with more parts."""
    grown = {
        name: torch.cat([t + 0.1 * torch.randn(t.shape), torch.randn(rows - len(t), dim)]) if len(t) == 8 else t + 0.1
        for name, t in base.items()
    }
    parts = {"encoder.conv.weight": torch.randn(2, 3), "head.steps": torch.tensor(5)}
    return {f"backbone.{name}": tensor for name, tensor in grown.items()} | parts


def rules(merged):
    return {tensor.name: tensor.rule for tensor in merged.report.tensors}


def test_a_speech_model_merges_with_the_llm_behind_its_prefix():
    base = llm()
    tuned = speech(base)
    merged = merge_state_dicts(base, [tuned], LinearMerge(0.5))
    for name, before in base.items():
        torch.testing.assert_close(merged.weights[f"backbone.{name}"], (before + tuned[f"backbone.{name}"]) / 2)
    assert torch.equal(merged.weights["encoder.conv.weight"], tuned["encoder.conv.weight"])
    assert rules(merged)["encoder.conv.weight"] == "tuned only"
    assert list(merged.weights) == list(tuned)
    assert merged.report.notes == ("4 of 4 tensors of the base are found under 'backbone.' of the tuned model",)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_alpha_one_and_zero_of_whole_models(method):
    base = llm()
    tuned = speech(base)
    method = type(method)(alpha=0.0)
    merged = merge_state_dicts(base, [tuned], method).weights
    assert all(torch.equal(merged[f"backbone.{name}"], tensor) for name, tensor in base.items())
    if isinstance(method, LinearMerge | SlerpMerge):
        method.alpha = 1.0
        merged = merge_state_dicts(base, [tuned], method).weights
        assert all(torch.equal(merged[name], tensor) for name, tensor in tuned.items())


def test_rows_that_the_vocabulary_gained_come_from_the_tuned_model():
    base = llm(tied=False)
    tuned = speech(base, rows=11)
    merged = merge_state_dicts(base, [tuned], LinearMerge(0.5))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found, after = merged.weights[f"backbone.{name}"], tuned[f"backbone.{name}"]
        torch.testing.assert_close(found[:8], (base[name] + after[:8]) / 2)
        assert torch.equal(found[8:], after[8:])
    notes = {tensor.name: tensor.note for tensor in merged.report.tensors}
    assert notes["backbone.lm_head.weight"] == "3 new rows copied"


def test_other_shapes_are_refused_in_one_line():
    base = llm()
    tuned = speech(base)
    tuned["backbone.model.norm.weight"] = torch.ones(5)
    with pytest.raises(
        CheckpointError, match=r"norm.weight is \(4,\) in the base but \(5,\) in tuned model 1: only the voc"
    ):
        merge_state_dicts(base, [tuned], LinearMerge())
    merged = merge_state_dicts(base, [tuned], LinearMerge(), exclude=["*.norm.weight"])
    assert merged.weights["backbone.model.norm.weight"].tolist() == [1] * 5
    tuned["backbone.model.norm.weight"] = torch.ones(4, 1)
    with pytest.raises(CheckpointError, match="one architecture and size"):
        merge_state_dicts(base, [tuned], LinearMerge())
    tuned = speech(llm(rows=8))
    with pytest.raises(CheckpointError, match="rows of the base are missing"):
        merge_state_dicts(llm(rows=9), [tuned], LinearMerge())


def test_growing_names_other_tensors_that_may_grow():
    base, tuned = {"table": torch.zeros(2, 3)}, {"table": torch.ones(4, 3)}
    merged = merge_state_dicts(base, [tuned], LinearMerge(0.5), growing=["table"])
    assert merged.weights["table"][:, 0].tolist() == [0.5, 0.5, 1, 1]


def test_patterns_choose_what_is_merged_and_the_rest_is_tuned():
    base = llm()
    tuned = speech(base)
    method = LinearMerge(0.5, alphas={"backbone.model.layers.0": 0.0, "*.layers.*": 1.0})
    weights = merge_state_dicts(base, [tuned], method, exclude=["*norm*"]).weights
    assert torch.equal(weights["backbone.model.layers.0.mlp.weight"], base["model.layers.0.mlp.weight"])
    assert torch.equal(weights["backbone.model.layers.1.mlp.weight"], tuned["backbone.model.layers.1.mlp.weight"])
    assert torch.equal(weights["backbone.model.norm.weight"], tuned["backbone.model.norm.weight"])
    only = merge_state_dicts(base, [tuned], LinearMerge(), include=["backbone.model.norm"])
    assert [name for name, rule in rules(only).items() if rule == "merged"] == ["backbone.model.norm.weight"]


@pytest.mark.parametrize(
    ("options", "alphas", "told"),
    [
        ({"include": ["backbone.model.layer.0"]}, {}, r"include: 'backbone.model.layer.0' matches no .* did you mean"),
        ({"exclude": ["encoder"]}, {}, "exclude: 'encoder' matches no tensor that base and tuned model share"),
        ({}, {"encoder": 0.3}, "alphas: 'encoder' matches no tensor that is merged"),
        ({"exclude": ["*norm*"]}, {"*norm*": 0.3}, "alphas: .*They begin with: backbone"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(options, alphas, told):
    base = llm()
    with pytest.raises(ValueError, match=told):
        merge_state_dicts(base, [speech(base)], LinearMerge(alphas=alphas), **options)


def test_nothing_left_to_merge_is_an_error():
    base = llm()
    with pytest.raises(ValueError, match="nothing is left to merge: include and exclude leave none of 4"):
        merge_state_dicts(base, [speech(base)], LinearMerge(), exclude=["backbone"])
    with pytest.raises(ValueError, match="there is no floating point tensor that base and tuned model share"):
        merge_state_dicts({"n": torch.tensor(1)}, [{"n": torch.tensor(1)}], LinearMerge())


def test_integers_come_from_the_tuned_model_and_differences_are_told():
    base = {"w": torch.zeros(2), "same": torch.tensor([1, 2]), "other": torch.tensor([True])}
    tuned = {"w": torch.ones(2), "same": torch.tensor([1, 2]), "other": torch.tensor([False])}
    merged = merge_state_dicts(base, [tuned], LinearMerge())
    assert not merged.weights["other"].item()
    notes = {tensor.name: tensor.note for tensor in merged.report.tensors if tensor.rule == "not a float"}
    assert notes == {"same": "", "other": "differs from the base; taken from tuned model 1"}


def test_what_only_the_base_has_is_copied_under_the_prefix():
    base = llm()
    tuned = speech(base)
    del tuned["backbone.model.layers.1.mlp.weight"]
    merged = merge_state_dicts(base, [tuned], LinearMerge())
    assert torch.equal(merged.weights["backbone.model.layers.1.mlp.weight"], base["model.layers.1.mlp.weight"])
    assert rules(merged)["backbone.model.layers.1.mlp.weight"] == "base only"


def test_several_models_share_new_parts_by_their_mean():
    base = llm()
    a, b = speech(base), speech(base)
    del b["backbone.model.norm.weight"]  # counts as unchanged
    merged = merge_state_dicts(base, [a, b], LinearMerge(1.0, weights=[1, 3]))
    mean = weighted_mean([a["encoder.conv.weight"], b["encoder.conv.weight"]], [1, 3])
    assert torch.equal(merged.weights["encoder.conv.weight"], mean)
    assert rules(merged)["encoder.conv.weight"] == "mean"
    norm = (a["backbone.model.norm.weight"] + 3 * base["model.norm.weight"]) / 4
    torch.testing.assert_close(merged.weights["backbone.model.norm.weight"], norm)
    b["encoder.conv.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="in another tuned model"):
        merge_state_dicts(base, [a, b], LinearMerge())


def test_tied_weights_count_once():
    base = llm()
    tuned = speech(base)
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()  # stored although tied
    merged = merge_state_dicts(base, [tuned], LinearMerge())
    assert "backbone.lm_head.weight" not in merged.weights
    assert any("lm_head.weight of the base is not copied: it is tied" in note for note in merged.report.notes)


def test_a_head_that_the_base_ties_merges_with_its_table():
    base = llm()
    tuned = speech(base) | {"backbone.lm_head.weight": torch.randn(8, 4)}
    weights = merge_state_dicts(base, [tuned], LinearMerge(0.5)).weights
    expected = (base["model.embed_tokens.weight"] + tuned["backbone.lm_head.weight"]) / 2
    torch.testing.assert_close(weights["backbone.lm_head.weight"], expected)


def test_prefixes_are_found_or_asked_for():
    base = llm()
    tuned = {f"model.{name}": tensor for name, tensor in speech(base).items()}
    assert (
        merge_state_dicts(base, [tuned], LinearMerge()).report.notes[0].endswith("'model.backbone.' of the tuned model")
    )
    with pytest.raises(
        CheckpointError, match=r"no tensor in common under the prefix 'llm\.': the base holds model\.embed"
    ):
        merge_state_dicts(base, [tuned], LinearMerge(), base_prefix="llm.")
    with pytest.raises(CheckpointError, match=r"no tensor in common: .*encoder\.conv"):
        merge_state_dicts(base, [{"encoder.conv": torch.ones(1)}], LinearMerge())
    twice = tuned | {f"other.{name}": tensor for name, tensor in speech(base).items()}
    with pytest.raises(CheckpointError, match=r"fits under 'model\.backbone\.' and 'other\.backbone\.' alike"):
        merge_state_dicts(base, [twice], LinearMerge())
    assert merge_state_dicts(base, [twice], LinearMerge(), base_prefix="other.backbone.").report.notes


def test_a_body_of_another_name_is_found():
    body = {"transformer.h.0.weight": torch.zeros(2, 2), "transformer.wte.weight": torch.zeros(3, 2)}
    tuned = {"backbone.model.h.0.weight": torch.ones(2, 2), "backbone.model.wte.weight": torch.ones(3, 2)}
    weights = merge_state_dicts(body, [tuned], LinearMerge(0.5)).weights
    assert list(weights) == list(tuned)
    assert all((tensor == 0.5).all() for tensor in weights.values())


@pytest.mark.parametrize(
    "extra",
    [
        {"model.a.weight": torch.ones(2, dtype=torch.uint8), "model.a.weight.absmax": torch.ones(1)},
        {"model.a.weight": torch.ones(2, dtype=torch.int8), "model.a.weight_scale": torch.ones(1)},
        {"model.a.qweight": torch.ones(2, dtype=torch.int32), "model.a.scales": torch.ones(1)},
        {"model.a.weight": torch.ones(2).to(torch.float8_e4m3fn)},
    ],
    ids=["bitsandbytes", "compressed", "gptq", "float8"],
)
def test_quantised_weights_are_refused(extra):
    base = llm()
    with pytest.raises(CheckpointError, match=r"the base is quantised .*merge the weights from before"):
        merge_state_dicts(base | extra, [speech(base)], LinearMerge())


def test_low_rank_updates_are_refused():
    base = llm()
    tuned = speech(base) | {"backbone.q.lora_A.default.weight": torch.ones(1, 2)}
    with pytest.raises(CheckpointError, match="add them to the weights first"):
        merge_state_dicts(base, [tuned], LinearMerge())


def test_report_has_norms_cosines_and_modules():
    base = llm()
    tuned = speech(base)
    report = merge_state_dicts(base, [tuned], LinearMerge(0.5, alphas={"*norm*": 0.25})).report
    found = {tensor.name: tensor for tensor in report.tensors}["backbone.model.layers.0.mlp.weight"]
    a, b = base["model.layers.0.mlp.weight"], tuned[found.name]
    expected = a.norm(), b.norm(), (b - a).norm(), ((a + b) / 2).norm()
    got = found.base_norm, found.tuned_norm[0], found.delta_norm[0], found.merged_norm
    assert got == pytest.approx([float(value) for value in expected])
    assert found.cosine[0] == pytest.approx(torch.cosine_similarity(a.flatten(), b.flatten(), 0).item())
    modules = report.modules()
    assert list(modules) == [
        "backbone.model.embed_tokens", "backbone.model.layers.0", "backbone.model.layers.1", "backbone.model.norm",
        "encoder.conv", "head",
    ]  # fmt: skip
    assert modules["backbone.model.norm"]["alphas"] == [0.25]
    assert modules["encoder.conv"]["rules"] == {"tuned only": 1}
    whole = report.total()["delta_norm"][0]
    assert whole == pytest.approx(sum(t.delta_norm[0] ** 2 for t in report.tensors if t.delta_norm) ** 0.5)
    assert report.table().row_count == 5


def test_values_that_are_not_finite_are_told():
    merged = merge_state_dicts({"w": torch.zeros(2)}, [{"w": torch.tensor([1.0, float("nan")])}], LinearMerge())
    assert merged.report.tensors[0].note == "holds values that are not finite"
    assert merged.report.as_json()["tensors"][0]["merged_norm"] is None


def test_types_that_differ_are_told_and_the_tuned_one_stays():
    merged = merge_state_dicts({"w": torch.zeros(3)}, [{"w": torch.ones(3).bfloat16()}], LinearMerge())
    assert merged.weights["w"].dtype == torch.bfloat16
    assert merged.report.notes == ("1 tensors are float32 in the base and bfloat16 in the tuned model: kept as that",)


class Largest(MergeMethod):
    """A method of a third party: whichever value is farther from 0."""

    elementwise = True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)
        self.sizes = []

    def merge(self, name, base, tuned):
        """Pick."""
        self.sizes.append(base.numel())
        return torch.where(base.abs() > tuned[0].abs(), base, tuned[0])


def test_a_method_of_ones_own_merges():
    merged = merge_state_dicts({"w": torch.tensor([1.0, -5.0])}, [{"w": torch.tensor([-2.0, 3.0])}], Largest())
    assert merged.weights["w"].tolist() == [-2, -5]
    assert merged.report.settings["method"]["class"] == "test_merging.Largest"


def test_alpha_must_be_a_number():
    with pytest.raises(ValueError, match="alpha must be a number, got head = nan"):
        LinearMerge(alphas={"head": float("nan")})
