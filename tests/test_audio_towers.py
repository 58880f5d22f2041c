"""Towers out of larger checkpoints: the released frames, and nothing else of the checkpoint is touched."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fac_lightning.encoders import FunAudioEncoder, FunAudioTower, Qwen2AudioEncoder
from fac_lightning.testing import ENCODER_KINDS, make_fun_audio_chat, tiny_encoder
from fac_lightning.weights import CheckpointError

SIZES = ENCODER_KINDS["qwen2_audio"][1]["config"]  # windows of 1 s
SAMPLES = [4000, 3840, 1380, 300, 3521, 15999, 16000]


def clips() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor(SAMPLES)
    return 0.1 * torch.randn(len(SAMPLES), 16000) * (torch.arange(16000) < lengths[:, None]), lengths


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random Qwen2-Audio as transformers writes it, in several files."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    torch.manual_seed(0)
    text = {"model_type": "qwen2", "vocab_size": 90, "hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    audio = {"model_type": "qwen2_audio_encoder", **SIZES}
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio_config=audio, text_config=text))
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("qwen2_audio")
    model.save_pretrained(folder, max_shard_size="15KB")
    return folder


def copied(checkpoint: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the checkpoint, and which file holds which tensor."""
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    places = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    return folder, places


# -- Qwen2-Audio -------------------------------------------------------------------------------------------------------


def test_qwen2_audio_gives_the_released_frames_and_one_more_for_a_position_left_over(checkpoint):
    from transformers import Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

    whole = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint).eval()
    audio, lengths = clips()
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)  # seconds that all clips are filled to
    waves = [wave[:count].numpy() for wave, count in zip(audio, SAMPLES, strict=True)]
    inputs = extractor(waves, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    tower = whole.model.audio_tower
    positions, frames = tower._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
    bias = torch.where(torch.arange(50) < positions[:, None], 0.0, -torch.inf)[:, None, None].expand(-1, 1, 50, -1)
    with torch.no_grad():
        theirs = tower(inputs["input_features"], attention_mask=bias).last_hidden_state
        ours = Qwen2AudioEncoder(str(checkpoint)).eval()(audio, lengths)
    assert frames.tolist() == [6, 6, 2, 0, 6, 25, 25]
    assert ours.lengths.tolist() == [7, 6, 3, 1, 6, 25, 25]
    for row, count in enumerate(frames.tolist()):
        # the last analysis window of a full 30 s sees it mirrored there, and silence here
        end = count - 1 if SAMPLES[row] > 15800 else count
        torch.testing.assert_close(
            ours.features[row, :end], theirs[row, :end], atol=1e-2 if end < count else 1e-5, rtol=0
        )


def test_a_position_left_over_is_a_frame_of_its_own():
    encoder = tiny_encoder("qwen2_audio")
    states = torch.randn(2, 5, 16)
    alone = encoder.model.layer_norm(states[:, 4])
    torch.testing.assert_close(encoder.read([states])[:, 2], alone)
    pair = encoder.model.layer_norm(states[:, :2].mean(1))
    torch.testing.assert_close(encoder.read([states], torch.tensor([5, 2]))[:, 0], pair)
    torch.testing.assert_close(
        encoder.read([states], torch.tensor([3, 3]))[:, 1], encoder.model.layer_norm(states[:, 2])
    )


def test_files_without_the_tower_are_not_opened(checkpoint, tmp_path):
    folder, places = copied(checkpoint, tmp_path)
    needed = {file for name, file in places.items() if name.startswith("audio_tower.")}
    others = set(places.values()) - needed
    assert others
    for file in others:
        (folder / file).unlink()
    encoder = Qwen2AudioEncoder(str(folder))
    assert all(not weight.is_meta for weight in encoder.state_dict().values())
    assert (encoder.dim, encoder.frame_rate, encoder.max_frames) == (16, 25.0, 25)
    assert not encoder.model.embed_positions.weight.requires_grad
    assert encoder.model.conv1.weight.requires_grad


def test_every_way_a_tower_is_stored_gives_the_same_encoder(checkpoint, tmp_path):
    from safetensors.torch import save_file
    from transformers import Qwen2AudioForConditionalGeneration

    expected = Qwen2AudioEncoder(str(checkpoint)).state_dict()
    whole = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint)
    whole.model.audio_tower.save_pretrained(tmp_path / "tower")
    whole.half().save_pretrained(tmp_path / "half")
    (tmp_path / "new").mkdir()
    whole.config.save_pretrained(tmp_path / "new")
    tensors = {name: tensor.float().contiguous() for name, tensor in whole.state_dict().items()}
    assert "model.audio_tower.conv1.weight" in tensors
    save_file(tensors, tmp_path / "new" / "model.safetensors")
    for name, tolerance in {"tower": 0.0, "half": 1e-3, "new": 1e-3}.items():
        found = Qwen2AudioEncoder(str(tmp_path / name)).state_dict()
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == torch.float32
            torch.testing.assert_close(found[key], tensor, atol=tolerance, rtol=tolerance)
    bare = Qwen2AudioEncoder(str(checkpoint), pretrained=False, num_layers=1)
    assert (bare.dim, len(bare.model.layers)) == (16, 1)


def test_other_and_broken_checkpoints_are_refused(checkpoint, tmp_path):
    folder, places = copied(checkpoint, tmp_path)
    (folder / places["audio_tower.conv1.weight"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model-0.*safetensors; give the folder of a whole checkpoint"):
        Qwen2AudioEncoder(str(folder))
    index = folder / "model.safetensors.index.json"
    del places["audio_tower.layers.1.fc2.bias"]
    index.write_text(json.dumps({"weight_map": {k: v for k, v in places.items() if "layers" in k}}))
    with pytest.raises(CheckpointError, match=r"does not hold what its own config.json describes: .*layers.1.fc2.bias"):
        Qwen2AudioEncoder(str(folder))
    index.write_text(json.dumps({"weight_map": {k: v for k, v in places.items() if "language_model" in k}}))
    with pytest.raises(
        CheckpointError, match=r"holds no tensor audio_tower\.\* or model\.audio_tower\.\*, but language"
    ):
        Qwen2AudioEncoder(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8}))
    with pytest.raises(CheckpointError, match="is a qwen3 and has no audio tower of Qwen2-Audio"):
        Qwen2AudioEncoder(str(folder))
    with pytest.raises(CheckpointError, match=r"there is no folder './nowhere'"):
        Qwen2AudioEncoder("./nowhere")
    with pytest.raises(OSError, match="'nobody/nothing' is no folder, not in the hub's cache"):
        Qwen2AudioEncoder("nobody/nothing")
    with pytest.raises(ValueError, match="set pretrained to false"):
        Qwen2AudioEncoder(config=SIZES)


# -- Fun-Audio-Chat ----------------------------------------------------------------------------------------------------


def test_the_tower_of_fun_audio_chat_stands_alone(tmp_path):
    from fac_lightning.interop.fun_audio_chat import load

    folder = make_fun_audio_chat(tmp_path / "chat")
    tower, encoder = FunAudioTower(str(folder)), load(folder).model.encoder
    theirs = encoder.state_dict()
    assert tower.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tower.state_dict().items())
    audio, lengths = clips()
    assert torch.equal(tower.eval()(audio, lengths).features, encoder(audio, lengths).features)
    assert not tower.audio_bos_eos_token.weight.requires_grad
    assert tower.proj.weight.requires_grad
    sizes = FunAudioTower(str(folder), pretrained=False, gradient_checkpointing=True)
    assert (sizes.dim, sizes.n_window, sizes.gradient_checkpointing) == (encoder.dim, encoder.n_window, True)


def test_the_tower_starts_a_plain_encoder_and_the_other_way_round(tmp_path):
    tower = FunAudioTower(str(make_fun_audio_chat(tmp_path)))
    plain = FunAudioEncoder(n_mels=16, d_model=tower.conv1.out_channels, num_layers=len(tower.layers), num_heads=2,
                            ffn_dim=tower.layers[0].fc1.out_features, dim=tower.dim)  # fmt: skip
    plain.load_state_dict(tower.state_dict())
    tower.load_state_dict(plain.state_dict())


def test_a_checkpoint_of_another_kind_has_no_tower_of_fun_audio_chat(checkpoint):
    with pytest.raises(CheckpointError, match="is a qwen2_audio, without the audio_config of a Fun-Audio-Chat"):
        FunAudioTower(str(checkpoint))
