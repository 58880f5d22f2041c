"""A stage for each of several values."""

from __future__ import annotations

import pytest

from fac_lightning.config import check, load

PIPELINE = """
vars: {run: runs/x}
stages:
  align:
    recipe: tiny/align
    each: {seed: [0, 1]}
    overrides: {seed: "${each.seed}", trainer: {default_root_dir: "${vars.run}/align-${each.seed}"}}
  sft:
    recipe: tiny/sft
    each: {k: [1, 5], seed: [0, 1]}
    init_from: align
    overrides:
      vars: {group_size: "${each.k}"}
      trainer: {default_root_dir: "${vars.run}/sft-${each.k}-${each.seed}"}
  table:
    recipe: tiny/report
    after: [sft, align]
"""


def compose(tmp_path, text=PIPELINE, words=()):
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    return load(file, words)


def test_every_combination_is_a_stage_of_its_own(tmp_path):
    stages = compose(tmp_path).tree["stages"]
    assert list(stages) == [
        "align-seed0", "align-seed1", "sft-k1-seed0", "sft-k1-seed1", "sft-k5-seed0", "sft-k5-seed1", "table",
    ]  # fmt: skip
    five = stages["sft-k5-seed1"]
    assert five["overrides"]["vars"]["group_size"] == 5  # a number stays one
    assert five["overrides"]["trainer"]["default_root_dir"] == "runs/x/sft-5-1"
    assert "each" not in five
    assert five["init_from"] == "align-seed1"
    assert stages["table"]["after"] == [*list(stages)[2:6], *list(stages)[:2]]


def test_values_can_be_changed_on_the_command_line(tmp_path):
    stages = compose(tmp_path, words=["stages.sft.each.k=[3]", "stages.sft.each.seed=[1]"]).tree["stages"]
    assert [name for name in stages if name.startswith("sft")] == ["sft-k3-seed1"]


def test_what_goes_with_a_value_stands_beside_it(tmp_path):
    text = PIPELINE.replace("{k: [1, 5], seed: [0, 1]}", "{k: {1: {frames: 2}, 5: {frames: 10}}, seed: [1]}")
    text = text.replace(
        'vars: {group_size: "${each.k}"}', 'vars: {group_size: "${each.k}", frames: "${each.k.frames}"}'
    )
    stages = compose(tmp_path, text).tree["stages"]
    assert [name for name in stages if name.startswith("sft")] == ["sft-k1-seed1", "sft-k5-seed1"]
    assert stages["sft-k5-seed1"]["overrides"]["vars"] == {"group_size": 5, "frames": 10}
    assert stages["sft-k5-seed1"]["init_from"] == "align-seed1"
    fewer = compose(tmp_path, text, ["~stages.sft.each.k.1", "stages.sft.each.k.5.frames=12"])
    assert fewer.tree["stages"]["sft-k5-seed1"]["overrides"]["vars"]["frames"] == 12
    assert "sft-k1-seed1" not in fewer.tree["stages"]
    (problem,) = compose(tmp_path, text, ["~stages.sft.each.k.7"]).problems
    assert "has no '7' to delete. It has: 1, 5." in str(problem)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{seed: [0, 1]}", "5", "takes names with lists of values"),
        ("{seed: [0, 1]}", "{seed: []}", "takes names with lists of values"),
        ("${each.k}", "${each.kk}", "'each' of this stage has no 'kk'. Did you mean 'k'?"),
        ("each: {k: [1, 5], seed: [0, 1]}", "each: {k: [1]}", "means 2 stages (align-seed0, align-seed1 ...)"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, old, new, message):
    problems = "\n".join(str(problem) for problem in check(compose(tmp_path, PIPELINE.replace(old, new))))
    assert message in problems
