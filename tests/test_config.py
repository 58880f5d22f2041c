"""The eight rules of the recipe engine, and the words in which it tells of mistakes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import recipe_parts
from fac_lightning.config import (
    RecipeError,
    UserError,
    check,
    ensure,
    instantiate,
    load,
    loads,
    recipe_text,
    report,
    untrusted,
)

TINY = """
seed: 1
vars: {dim: 4, run: runs/tiny}
model:
  _target_: recipe_parts.Model
  dim: ${vars.dim}
  adapter:
    _target_: recipe_parts.Adapter
    dim: ${vars.dim}
    codebook_size: 32
task:
  _target_: recipe_parts.Task
  optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 1e-1}
data:
  _target_: recipe_parts.Data
  dim: ${vars.dim}
trainer:
  max_steps: 3
  default_root_dir: ${vars.run}
  callbacks:
    stop: {_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: train/loss}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str = TINY, name: str = "tiny.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def told(path: Path, *overrides: str) -> str:
    return report("recipe", check(load(path, overrides)))


# rule 1


def test_target_is_called_with_its_siblings_and_partial_waits():
    node = {"_target_": "recipe_parts.Model", "adapter": {"_target_": "recipe_parts.Adapter", "dim": 4}}
    assert isinstance(instantiate(node).adapter, recipe_parts.Adapter)
    later = instantiate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert isinstance(later, functools.partial)
    assert later.keywords == {"lr": 0.5}
    assert instantiate({"_target_": "recipe_parts.Data.small", "dim": 3}).batch_size == 1
    assert instantiate({"_target_": "recipe_parts.needs_keyword", "steps": 3}) == (3, None)


def test_there_is_no_other_magic_key(write):
    assert "is no key of a node" in told(write(), "data={_convert_: all}")


def test_objects_are_passed_where_they_are_taken():
    node = {"_target_": "recipe_parts.Model", "dim": 4}
    adapter = recipe_parts.Silent()
    assert instantiate(node, adapter=adapter, geometry=3).adapter is adapter


# rule 2


def test_command_line_comes_before_interpolation(write):
    tree = load(write(), ["vars.dim=8"]).tree
    assert tree["model"]["dim"] == tree["model"]["adapter"]["dim"] == tree["data"]["dim"] == 8


def test_nothing_is_built_before_all_is_checked(write):
    from fac_lightning.cli.fit import fit

    recipe_parts.BUILT.clear()
    with pytest.raises(RecipeError, match=r"data\.dmi"):
        fit(load(write(TINY.replace("  dim: ${vars.dim}\ntrainer", "  dmi: ${vars.dim}\ntrainer"))))
    assert recipe_parts.BUILT == []


def test_base_is_below_and_relative_to_the_file(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write()
    write("trainer: {max_steps: 7, min_steps: 2}\nseed: 5\n", "trainer.yaml")
    child = write("base: [../tiny.yaml, ../trainer.yaml]\nseed: 9\nvars: {dim: 6}\n", "sub/child.yaml")
    tree = load(child).tree
    assert (tree["seed"], tree["trainer"]["max_steps"], tree["trainer"]["min_steps"]) == (9, 7, 2)
    assert tree["model"]["dim"] == 6
    assert "base" not in tree


def test_base_in_a_circle_is_told(write):
    write("base: b.yaml\n", "a.yaml")
    path = write("base: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match=r"goes round in a circle: b\.yaml -> a\.yaml -> b\.yaml"):
        load(path)


def test_base_that_is_not_there_is_told_with_the_nearest(write):
    write()
    with pytest.raises(UserError, match=r"'base: tniy\.yaml' is not there .* Did you mean 'tiny\.yaml'"):
        load(write("base: tniy.yaml\n", "child.yaml"))


def test_broken_yaml_is_told_with_its_line(write):
    with pytest.raises(UserError, match=r"is no valid YAML: .*at line \d"):
        load(write("seed: 1\nmodel: [1, 2\nx: 3"))


def test_a_recipe_that_is_nowhere_suggests():
    with pytest.raises(UserError, match="there is no recipe 'tiny/nothing_like_it'"):
        load("tiny/nothing_like_it")


# rule 3


PLANTED = """
model:
  _target_: fac_lightning.models.SpeechLM
  backbone:
    _target_: fac_lightning.backbones.HFBackbone
    pretrianed: false
  head:
    _target_: fac_lightning.heads.RefindHead
    dim: 16
data:
  _target_: fac_lightning.data.DialogueWriter
  folder: ???
"""


def test_three_planted_mistakes_are_listed_at_once(write):
    text = told(write(PLANTED))
    assert text.startswith("recipe: 3 problems\n")
    assert (
        "  model.backbone.pretrianed = false\n"
        "      fac_lightning.backbones.HFBackbone takes no 'pretrianed'. Did you mean 'pretrained'?\n"
        "      It takes: name, config, pretrained," in text
    )
    assert (
        "  model.head._target_ = fac_lightning.heads.RefindHead\n"
        "      fac_lightning.heads has no 'RefindHead'. Did you mean 'RefinedHead'?\n" in text
    )
    assert "  data.folder = ???\n      is required (str | Path). In the recipe, or on the command line: data.f" in text


def test_check_imports_nothing_heavy(write):
    """What makes ``fac check`` answer at once: no clock, but no torch either."""
    code = (
        "import sys\nfrom fac_lightning.cli import main\n"
        "rc = main(['check', sys.argv[1]])\n"
        "heavy = {'torch', 'transformers', 'lhotse', 'lightning', 'numpy', 'rich'} & set(sys.modules)\n"
        "print(rc, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(write(PLANTED))], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 []"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=two", "recipe_parts.Data takes 'batch_size: int', not the str two."),
        ("data.batch_size=2.0", "takes 'batch_size: int', not the float 2.0. Write 2."),
        ("data.batch_size=true", "takes 'batch_size: int', not the bool true."),
        ("data.batch_size=null", "takes 'batch_size: int', not null."),
        ("task.scale=[1]", "takes 'scale: float', not the list [1]."),
        ("model.options={a: x}", "takes 'options: dict[str, int] | None', not the dict {'a': 'x'}."),
        ("task=recipe_parts.Taks", "recipe_parts has no 'Taks'. Did you mean 'Task'?"),
        ("task=recipe_partz.Task", "no package or module named 'recipe_partz'"),
        ("task=recipe_parts", "is not a dotted path to a class or function"),
        ("task=fac_lightning.tasks", "fac_lightning.tasks is a module; name a class or function in it"),
        ("model.adapter=fac_lightning.adapters.CodeAdapter", "is a base class"),
        ("sead=1", "a recipe has no 'sead'. Did you mean 'seed'?"),
        ("seed=-1", "takes a whole number from 0."),
        ("seed=x", "takes a whole number from 0."),
        ("vars.dmi=3", "'vars' has no 'dmi'. Did you mean 'dim'?"),
        ("data.dim=${vars.dmi}", "points at nothing: 'vars' has no 'dmi'. Did you mean 'dim'?"),
        ("data.dim=???", "is required (int)."),
        ("model=3", "must be a node"),
        ("trainer.callbacks.stop.montior=x", "takes no 'montior'. Did you mean 'monitor'?"),
        ("~trainer.callbakcs", "'trainer' has no 'callbakcs' to delete. Did you mean 'callbacks'?"),
        ("data.dim.x=1", "'data.dim' is ${vars.dim}, which has nothing inside to set."),
        ("data.dim=[1", "is no valid YAML"),
        ("data.dim", "is not 'key=value' or '~key'."),
    ],
)
def test_each_mistake_has_its_words(write, override, words):
    text = told(write(), override)
    assert words in text
    assert "1 problem\n" in text


def test_literals_suggest(write):
    text = told(write(), "model.adapter=recipe_parts.QueryAdapter", "model.adapter.kind=maen")
    assert "takes 'kind' as one of 'mean', 'sum'. Did you mean 'mean'?" in text


def test_missing_argument_is_told_unless_the_caller_gives_it(write):
    assert "model.adapter\n      is missing: recipe_parts.Model needs 'adapter' (nn.Module)." in told(
        write(), "~model.adapter"
    )
    assert told(write()) == "recipe: no problems"  # task.model comes from the command line's build


def test_a_section_without_target_is_told(write):
    assert "data._target_\n      is missing" in told(write("data: {dim: 3}\n"))


def test_missing_may_be_allowed_for_recipes_that_wait_for_data(write):
    recipe = load(write(), ["data.dim=???"])
    assert check(recipe, allow_missing=True) == []


def test_a_missing_value_is_told_once_where_it_stands(write):
    text = told(write(), "vars.dim=???")
    assert "1 problem\n" in text
    assert "  vars.dim = ???\n      is required." in text


# rule 4


def test_changed_target_keeps_what_it_takes_and_says_what_it_drops(write, caplog):
    caplog.set_level("INFO", "fac_lightning")
    recipe = load(write(), ["model.adapter=recipe_parts.QueryAdapter", "model.adapter.num_queries=16"])
    assert recipe.tree["model"]["adapter"] == {"_target_": "recipe_parts.QueryAdapter", "dim": 4, "num_queries": 16}
    line = "model.adapter: Adapter -> recipe_parts.QueryAdapter drops codebook_size (it takes no such argument) "
    assert recipe.notes == (line + "and keeps dim",)
    assert recipe.notes[0] in caplog.messages
    assert check(recipe) == []


def test_arguments_of_the_new_target_may_stand_first(write):
    words = ["model.adapter.num_queries=16", "model.adapter=recipe_parts.QueryAdapter"]
    assert check(load(write(), words)) == []


def test_overlay_changes_a_target_alike(write):
    write()
    child = write(
        "base: tiny.yaml\nmodel: {adapter: {_target_: recipe_parts.QueryAdapter, num_queries: 2}}\n", "child.yaml"
    )
    assert load(child).tree["model"]["adapter"] == {
        "_target_": "recipe_parts.QueryAdapter",
        "dim": 4,
        "num_queries": 2,
    }


def test_a_changed_target_that_does_not_exist_is_one_problem(write):
    assert "1 problem\n" in told(write(), "model.adapter=recipe_parts.Nothing")


# rule 5


def test_constructors_get_plain_python(write):
    recipe = load(write(), ["model.options={a: 1}"])
    model = instantiate(recipe.tree["model"])
    assert type(model.options) is dict
    json.dumps(recipe.tree)


# rule 6


def test_split_at_the_first_equals_and_values_are_yaml(write):
    tree = load(
        write(),
        ["vars.run=a=b", "data.batch_size=4", "model.options={x: 1}", "seed=null", "task.scale=1e-3", "~trainer"],
    ).tree
    assert tree["vars"]["run"] == "a=b"
    assert tree["data"]["batch_size"] == 4
    assert tree["model"]["options"] == {"x": 1}
    assert tree["seed"] is None
    assert tree["task"]["scale"] == pytest.approx(1e-3)
    assert "trainer" not in tree


def test_new_keys_are_taken_where_the_signature_takes_them(write):
    words = ["data.batch_size=4", "model.options.fresh=1", "trainer.min_steps=2", "ckpt_path=last", "init_from=runs/a"]
    assert told(write(), *words) == "recipe: no problems"
    assert "recipe_parts.Data takes no 'bach_size'. Did you mean 'batch_size'?" in told(write(), "data.bach_size=4")


def test_items_of_a_list_have_numbers(write):
    path = write("vars: {a: [1, 2]}\n")
    assert load(path, ["vars.a.1=5"]).tree["vars"]["a"] == [1, 5]
    assert "is a list of 2" in told(path, "vars.a.2=5")


# rule 7


def test_callbacks_are_a_mapping_that_the_command_line_reaches(write):
    from lightning.pytorch.callbacks import EarlyStopping, ModelSummary

    from fac_lightning.cli.build import build_trainer

    words = [
        "trainer.callbacks.stop.patience=7",
        "trainer.callbacks.summary._target_=lightning.pytorch.callbacks.ModelSummary",
        "trainer.accelerator=cpu",
    ]
    recipe = load(write(), words)
    ensure(recipe)
    callbacks = build_trainer(recipe).callbacks
    assert next(one for one in callbacks if isinstance(one, EarlyStopping)).patience == 7
    assert any(isinstance(one, ModelSummary) for one in callbacks)
    gone = load(write(), ["~trainer.callbacks.stop", "trainer.accelerator=cpu"])
    assert not any(isinstance(one, EarlyStopping) for one in build_trainer(gone).callbacks)


# rule 8


def test_saved_recipes_build_parts_only():
    def refused(target: str, *allow: str) -> bool:
        return bool(untrusted({"_target_": target}, allow))

    assert not refused("torch.nn.Linear")
    assert not refused("torch.optim.AdamW")
    assert not refused("fac_lightning.heads.RefinedHead")
    assert refused("os.system")
    assert refused("torch.load")
    assert refused("torch.hub.load")
    assert refused("fac_lightning.cli.main")
    assert refused("fac_lightning.config.locate")
    assert refused("fac_lightning.config.save.subprocess.run")  # a door to elsewhere through one of our modules
    assert refused("fac_lightning.types.torch.load")
    assert refused("recipe_parts.Model")
    assert not refused("recipe_parts.Model", "recipe_parts.")
    assert refused("recipe_parts.torch.load", "recipe_parts.")


def test_untrusted_lists_nested_targets_with_the_way_out():
    tree = {"_target_": "torch.nn.Linear", "in_features": [{"_target_": "my_lab.Thing"}], "x": {"trust_remote_code": 1}}
    problems = untrusted(tree, (), "model")
    assert [problem.key for problem in problems] == ["model.in_features.0._target_", "model.x.trust_remote_code"]
    allowed = untrusted({"_target_": "recipe_parts.Model"})
    assert "--allow recipe_parts." in str(allowed[0])


def test_nothing_is_imported_to_judge_a_target(tmp_path, monkeypatch):
    (tmp_path / "evil_part.py").write_text("raise SystemExit('imported')\nclass Part:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert untrusted({"_target_": "evil_part.Part"})
    assert "evil_part" not in sys.modules


def test_sys_path_stays_as_it_is(write):
    before = list(sys.path)
    check(load(write()))
    assert sys.path == before


# saving


def test_saved_text_is_complete_and_loads_to_the_same(write, tmp_path):
    recipe = load(write(), ["vars.dim=8", "task.scale=1e-5", "vars.run='1e3'"])
    text = recipe_text(recipe, ["fac", "fit", "tiny.yaml", "vars.dim=8"])
    first = text.splitlines()[0]
    assert first.startswith("# fac_lightning 0.1.0 | lightning ")
    assert " | torch " in first
    assert " | python " in first
    assert first.endswith("| fac fit tiny.yaml vars.dim=8")
    assert "${" not in text
    (tmp_path / "again.yaml").write_text(text)
    assert load(tmp_path / "again.yaml").tree == recipe.tree == loads(text).tree


def test_a_saved_recipe_has_no_interpolation():
    with pytest.raises(UserError, match="a saved recipe is complete"):
        loads("vars: {a: '${oc.env:HOME}'}")


def test_construction_errors_name_the_key():
    node = {
        "_target_": "recipe_parts.Model",
        "adapter": {"_target_": "recipe_parts.QueryAdapter", "dim": 4, "num_queries": 0},
    }
    with pytest.raises(UserError, match=r"^model\.adapter: QueryAdapter: num_queries must be at least 1, got 0$"):
        instantiate(node, "model")
