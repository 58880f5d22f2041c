"""A run keeps its recipe and its weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fac_lightning.callbacks import SaveRecipe, SaveWeights, load_weights, write_recipe
from recipe_parts import Adapter, Model


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(strategy=None, is_global_zero=True, default_root_dir=str(tmp_path))


def model(group_size: int = 5) -> Model:
    return Model(Adapter(4, group_size))


def test_recipe_is_written_once_and_another_is_refused(trainer, tmp_path):
    SaveRecipe("# today\nseed: 1\n").setup(trainer, None, "fit")
    SaveRecipe("# tomorrow\nseed: 1\n").setup(trainer, None, "fit")
    assert (tmp_path / "recipe.yaml").read_text() == "# today\nseed: 1\n"
    with pytest.raises(ValueError, match=r"never overwritten \(there 'seed: 1', now 'seed: 2'\)") as error:
        SaveRecipe("seed: 2\n").setup(trainer, None, "fit")
    assert f"fac run {tmp_path / 'recipe.yaml'}" in str(error.value)
    assert (tmp_path / "recipe.yaml").read_text() == "# today\nseed: 1\n"


def test_a_longer_recipe_is_another_one(tmp_path):
    write_recipe("seed: 1\n", tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"there '\(end\)', now 'vars: 2'"):
        write_recipe("seed: 1\nvars: 2\n", tmp_path / "recipe.yaml")


def test_checkpoint_holds_the_text():
    checkpoint: dict[str, object] = {}
    SaveRecipe("seed: 1\n").on_save_checkpoint(None, None, checkpoint)
    assert checkpoint == {"fac_lightning_recipe": "seed: 1\n"}


def test_weights_come_back_tied_ones_included(trainer, tmp_path):
    first, second = model(), model()
    SaveWeights().on_fit_end(trainer, SimpleNamespace(model=first))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = load_weights(second, tmp_path)
    assert loaded.missing == loaded.unexpected == loaded.mismatched == ()
    x = torch.randn(3, 4)
    assert torch.equal(first(x), second(x))
    assert second.out.weight is second.embed.weight


def test_weights_that_do_not_fit_are_listed(trainer, tmp_path):
    SaveWeights().on_fit_end(
        trainer, SimpleNamespace(model=nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 2)}))
    )
    other = nn.ModuleDict({"a": nn.Linear(2, 4), "b": nn.Linear(2, 2), "c": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"2 missing: c\.bias, c\.weight; 2 mismatched: a\.bias \(3,\) in the file"):
        load_weights(other, tmp_path)
    loaded = load_weights(other, tmp_path / "model.safetensors", strict=False)
    assert loaded.loaded == ("b.bias", "b.weight")
    assert str(loaded) == "2 tensors loaded, 2 missing, 2 of another size"
    with pytest.raises(ValueError, match="have nothing in common with this Linear"):
        load_weights(nn.Linear(1, 1), tmp_path, strict=False)


def test_no_weights_say_where(tmp_path):
    with pytest.raises(FileNotFoundError, match="has the run ended"):
        load_weights(nn.Linear(1, 1), tmp_path)


def test_a_task_without_model_is_refused(trainer):
    with pytest.raises(ValueError, match="but SimpleNamespace has no such module"):
        SaveWeights().on_fit_end(trainer, SimpleNamespace())


def test_weights_that_are_spread_over_processes_are_not_written_in_part(tmp_path):
    from lightning.pytorch.strategies import ModelParallelStrategy

    trainer = SimpleNamespace(strategy=ModelParallelStrategy(), is_global_zero=True, default_root_dir=str(tmp_path))
    with pytest.warns(UserWarning, match=r"ModelParallelStrategy spreads .* model.safetensors will not be written"):
        SaveWeights().on_fit_start(trainer, None)
    SaveWeights().on_fit_end(trainer, None)
    assert not list(tmp_path.iterdir())
