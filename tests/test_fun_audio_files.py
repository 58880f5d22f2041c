"""Checkpoints of the released format go in and out unchanged; those that cannot be used say why in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fac_lightning.cli.app import main
from fac_lightning.interop.fun_audio_chat import compare, load, save
from fac_lightning.weights import CheckpointError
from fun_audio_golden import CHECKPOINT, needs_golden
from fun_audio_tiny import TEXT_SPECIAL, tiny_config, write_checkpoint

VARIANTS = {
    "replace": {},
    "add": {"mode": "add"},
    "groups of 4": {"group_size": 4, "n_window": 8},
    "specials first": {"special": (0, 1, 2)},
    "tied text": {"tied": True},
    "mixture": {"experts": 3},
    "other text ids": {"text_order": tuple(reversed(TEXT_SPECIAL))},
}


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_loaded_and_saved_is_the_same_to_the_byte(tmp_path, variant, shards):
    config = tiny_config(**VARIANTS[variant], a_field_of_tomorrow={"kept": [1, None]})
    folder = write_checkpoint(tmp_path / "in", config, shards, torch.bfloat16)
    chat = load(folder)
    assert chat.coverage.complete
    assert {p.dtype for p in chat.parameters()} == {torch.bfloat16}
    save(chat, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors.index.json").unlink(missing_ok=True)  # ours is laid out for reading
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    assert tree(tmp_path / "out") == tree(folder)


def test_the_index_of_shards_is_written_again(tmp_path):
    folder = write_checkpoint(tmp_path / "in", tiny_config(), 2)
    save(load(folder), tmp_path / "out")
    one, other = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (folder, tmp_path / "out"))
    assert one == other
    assert compare(folder, tmp_path / "out") == ()


@needs_golden
def test_the_tiny_released_checkpoint_comes_back_to_the_byte(tmp_path):
    save(load(CHECKPOINT), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(CHECKPOINT)


@pytest.mark.parametrize("names", ["table", "head", "both"])
def test_the_tied_table_may_come_under_either_name(tmp_path, names):
    folder = write_checkpoint(tmp_path, tiny_config())
    file = folder / "model.safetensors"
    tensors = load_file(file)
    table = tensors.pop("audio_tower.embed_tokens.weight")
    if names != "head":
        tensors["audio_tower.embed_tokens.weight"] = table
    if names != "table":
        tensors["audio_invert_tower.lm_head.weight"] = table.clone()
    save_file(tensors, file, {"format": "pt"})
    chat = load(folder)
    assert chat.model.head.table is chat.model.code_adapter.table
    assert torch.equal(chat.model.head.table, table)
    if names == "head":  # and is written under the name it came with
        save(chat, tmp_path / "out")
        assert "audio_invert_tower.lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_tied_tensors_that_differ_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path, tiny_config())
    tensors = load_file(folder / "model.safetensors")
    tensors["audio_invert_tower.lm_head.weight"] = tensors["audio_tower.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="which the model shares, with different values"):
        load(folder)


def test_types_can_be_changed_on_the_way_in_and_out(tmp_path):
    folder = write_checkpoint(tmp_path / "in", tiny_config(), dtype=torch.bfloat16)
    chat = load(folder, dtype="float32")
    assert {p.dtype for p in chat.parameters()} == {torch.float32}
    save(chat, tmp_path / "out", dtype="bfloat16")
    assert compare(folder, tmp_path / "out") == ()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype 'int8' is no floating type"):
        load(folder, dtype="int8")
    with pytest.raises(ValueError, match="dtype 'int8' is no floating type"):
        save(chat, tmp_path / "other", dtype="int8")
    with pytest.raises(ValueError, match="attn 'eager' is unknown; choose one of auto, sdpa"):
        load(folder, attn="eager")


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    chat = load(write_checkpoint(tmp_path / "in", tiny_config()))
    with pytest.raises(FileExistsError, match="is not empty: nothing is overwritten"):
        save(chat, tmp_path / "in")
    import fac_lightning.interop.fun_audio_chat.files as files

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "_write_config", full)
    with pytest.raises(OSError, match="no space"):
        save(chat, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def broken(folder, how):
    """A checkpoint spoilt in one way."""
    file = folder / "model.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "corrupt header":
        file.write_bytes(file.read_bytes()[:8] + b"{]" + file.read_bytes()[10:])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no weights":
        file.unlink()
    elif how == "other architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    elif how == "config not JSON":
        (folder / "config.json").write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "config incomplete":
        config = tiny_config()
        del config["audio_config"]["group_size"], config["text_config"]["sil_index"]
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "other sizes":
        (folder / "config.json").write_text(json.dumps(tiny_config(group_size=4)))
    else:
        tensors = load_file(file)
        if how == "missing tensor":
            del tensors["language_model.model.norm.weight"]
        else:
            tensors["audio_tower.something_new"] = torch.zeros(2)
        save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cut short or damaged"),
        ("corrupt header", "its header cannot be read"),
        ("empty", "no safetensors file or cut short"),
        ("no weights", "there are no weights"),
        ("other architecture", "describes Qwen3ForCausalLM, not funaudiochat"),
        ("config not JSON", "config.json cannot be read"),
        ("no config", "it has no config.json"),
        ("config incomplete", "lacks audio_config.group_size, text_config.sil_index"),
        ("other sizes", r"pre_matching.weight \(72, 24\) in the file, \(96, 24\) in the model"),
        ("missing tensor", "1 missing: language_model.model.norm.weight"),
        ("unexpected tensor", "1 unexpected: audio_tower.something_new"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_gives_one_line_and_status_4(tmp_path, capsys, how, message):
    folder = broken(write_checkpoint(tmp_path / "in", tiny_config()), how)
    with pytest.raises(CheckpointError, match=message):
        load(folder)
    assert main(["import", str(folder), "--out", str(tmp_path / "run")]) == 4
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if "error" in line]) == 1
    assert len(said) == 1, said
    assert not (tmp_path / "run").exists()


def test_a_missing_shard_gives_one_line_and_status_4(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "in", tiny_config(), 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert main(["import", str(folder), "--out", str(tmp_path / "run")]) == 4
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "model-00002-of-00003.safetensors" in said


def test_a_checkpoint_is_read_tensor_by_tensor(tmp_path, monkeypatch):
    # no more of the file is on the host than its largest tensor, whatever the device keeps
    from fac_lightning.merging import source

    folder = write_checkpoint(tmp_path, tiny_config(), 2)
    sizes = []
    read = source.FileSource.read

    def counting(self, name, start, stop):
        sizes.append(self._buffer.nbytes)
        return read(self, name, start, stop)

    monkeypatch.setattr(source.FileSource, "read", counting)
    chat = load(folder, device="meta")
    largest = max(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    assert max(sizes) <= largest
    assert all(parameter.is_meta for parameter in chat.parameters())


def test_import_and_export_by_the_command_line(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "in", tiny_config(experts=2, tied=True))
    assert main(["import", str(folder), "--out", str(tmp_path / "run")]) == 0
    assert "tensors loaded" in capsys.readouterr().out
    export = ["export", str(tmp_path / "run"), "--format", "fun-audio-chat", "--out", str(tmp_path / "out")]
    assert main([*export, "--compare", str(folder)]) == 0
    assert "0 tensors differ" in capsys.readouterr().out
    assert tree(tmp_path / "out") == tree(folder)
    assert main(export) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main(["import", str(folder), "--out", str(tmp_path / "run")]) == 2
    shutil.rmtree(tmp_path / "run" / "fun_audio_chat")
    assert main([*export[:-1], str(tmp_path / "again")]) == 2
    assert "name one whose configuration and tokenizers to take, with --like" in capsys.readouterr().err
    assert main([*export[:-1], str(tmp_path / "again"), "--like", str(folder)]) == 0
    assert tree(tmp_path / "again") == tree(folder)
