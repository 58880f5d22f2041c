"""wav2vec 2.0, HuBERT, WavLM and w2v-BERT: transformers' numbers, its files, and nothing of a neighbour's padding."""

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.encoders import CachedEncoder, W2vBertEncoder, Wav2VecEncoder
from fac_lightning.testing import ENCODER_KINDS, tiny_encoder
from fac_lightning.weights import CheckpointError

FAMILIES = ("hubert", "wav2vec2", "wavlm")
BUILDS = [(norm, stable) for norm in ("group", "layer") for stable in (False, True)]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def config_of(kind: str, **changes) -> dict:
    return {**ENCODER_KINDS[kind][1]["config"], **changes}


def speech(samples: int) -> Tensor:
    return 0.1 * torch.randn(1, samples)


def wobbled(model):
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return model.eval()


def saved(folder: Path, kind: str, head: str = "Model", **changes):
    """A random model of transformers with a head, written by itself."""
    import transformers

    config = transformers.AutoConfig.for_model(**{"model_type": "wav2vec2-bert", **config_of(kind, **changes)})
    model = wobbled(getattr(transformers, type(config).__name__.replace("Config", head))(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def no_network(monkeypatch):
    """The hub is not told to stay offline, but whoever asks the network fails."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was asked: {args}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# -- transformers' numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("norm", "stable"), BUILDS)
def test_frames_are_transformers_for_the_clip_and_the_silence_of_its_last_frame(family, norm, stable, tmp_path):
    changes = {"feat_extract_norm": norm, "do_stable_layer_norm": stable}
    model = saved(tmp_path, family, **changes)
    clips, lengths = torch.cat([speech(7000), speech(7000)]), torch.tensor([7000, 3333])
    for row, samples in enumerate(lengths.tolist()):
        wave = clips[row : row + 1, :samples]
        if norm == "layer":
            wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        frames = -(-samples // 320)
        with torch.no_grad():
            theirs = model(F.pad(wave, (0, 320 * frames + 80 - samples)), output_hidden_states=True)
        for layer in (None, 1, 2):
            with torch.no_grad():
                ours = Wav2VecEncoder(str(tmp_path), layer=layer).eval()(clips, lengths)
            expected = theirs.last_hidden_state if layer is None else theirs.hidden_states[layer]
            assert ours.lengths[row] == frames
            torch.testing.assert_close(ours.features[row, :frames], expected[0], **CLOSE)


def test_layers_above_the_chosen_one_are_not_kept():
    whole, part = (tiny_encoder("wav2vec2", layer=layer).state_dict() for layer in (None, 1))
    gone = {name for name in whole if ".layers.1." in name or name.startswith("model.encoder.layer_norm.")}
    assert gone
    assert part.keys() == whole.keys() - gone


def test_convolutions_see_of_a_clip_what_transformers_shows_them():
    encoder, wave = tiny_encoder("wav2vec2"), speech(5000)
    encoder.normalize = False
    with torch.no_grad():
        theirs = encoder.model.feature_extractor(wave).transpose(1, 2)
        ours = encoder.observe(F.pad(wave, (0, 120)), torch.tensor([16]))
    assert (theirs.shape[1], ours.shape[1]) == (15, 16)  # (5000 - 400) // 320 + 1 and ceil(5000 / 320)
    torch.testing.assert_close(ours[:, :15], theirs, **CLOSE)


def test_nothing_is_masked_or_left_out_at_random_in_training():
    encoder = tiny_encoder("hubert", config=config_of("hubert", hidden_dropout=0.0, attention_dropout=0.0))
    encoder.model.config.activation_dropout = 0.0
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wave = speech(100)  # shorter than a masked span, at which transformers stops
    assert torch.equal(encoder.train()(wave).features, encoder.eval()(wave).features)
    assert "model.masked_spec_embed" not in encoder.state_dict()


# -- w2v-BERT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [560, 800, 3333, 7777, 16000])
def test_filter_banks_are_those_of_transformers_feature_extractor(samples):
    from transformers import SeamlessM4TFeatureExtractor

    wave = speech(samples)
    extractor = SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)
    theirs = extractor(wave[0].numpy(), sampling_rate=16000, return_tensors="pt")
    whole = int(theirs["attention_mask"].sum())
    ours = tiny_encoder("w2v_bert").prepare(F.pad(wave, (0, 500), value=0.3), torch.tensor([samples]))
    assert whole == ((samples - 400) // 160 + 1) // 2
    torch.testing.assert_close(ours[0, :whole], theirs["input_features"][0, :whole], atol=2e-4, rtol=1e-4)
    count = -(-samples // 320)
    assert not ours[0, count:].any()
    assert ours[0, :count].abs().amax(1).min() > 0


def test_w2v_bert_gives_transformers_frames_for_the_same_filter_banks(tmp_path):
    model = saved(tmp_path, "w2v_bert")
    clips, lengths = torch.cat([speech(7000), speech(7000)]), torch.tensor([7000, 3333])
    for layer in (None, 1):
        encoder = W2vBertEncoder(str(tmp_path), layer=layer).eval()
        with torch.no_grad():
            ours = encoder(clips, lengths).features
            banks = encoder.prepare(clips, lengths)
            for row, frames in enumerate((22, 11)):
                theirs = model(banks[row : row + 1, :frames], output_hidden_states=True)
                expected = theirs.last_hidden_state if layer is None else theirs.hidden_states[layer]
                torch.testing.assert_close(ours[row, :frames], expected[0], **CLOSE)


def test_w2v_bert_normalises_over_the_whole_clip_and_not_over_a_window():
    encoder = tiny_encoder("w2v_bert")
    wave = torch.cat([speech(16000), 0.01 * speech(16000)], 1)
    banks = encoder.prepare(wave, torch.tensor([32000]))[0]
    assert banks[:50].mean() > 0.5
    assert banks[50:].mean() < -0.5


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["Model", "ForCTC", "ForSequenceClassification"])
@pytest.mark.parametrize("kind", [*FAMILIES, "w2v_bert"])
def test_folders_of_transformers_load_whatever_head_they_have(kind, head, tmp_path, no_network):
    model = saved(tmp_path, kind, head, vocab_size=7)
    encoder = (W2vBertEncoder if kind == "w2v_bert" else Wav2VecEncoder)(str(tmp_path))
    theirs = model.base_model.state_dict()
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    bare = type(encoder)(str(tmp_path), pretrained=False)
    assert {name: x.shape for name, x in bare.state_dict().items()} == {
        name: x.shape for name, x in encoder.state_dict().items()
    }


def test_weight_norms_of_older_checkpoints_load(tmp_path):
    """The published files write weight_g and weight_v where torch has parametrizations now."""
    from safetensors.torch import load_file, save_file

    model = saved(tmp_path, "wavlm")
    renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in renamed.items():
        tensors[f"encoder.pos_conv_embed.conv.{old}"] = tensors.pop(f"encoder.pos_conv_embed.conv.{new}")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    encoder = Wav2VecEncoder(str(tmp_path))
    assert torch.equal(encoder.model.encoder.pos_conv_embed.conv.weight, model.encoder.pos_conv_embed.conv.weight)


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2"])
def test_levels_are_normalised_where_the_feature_extractor_says_so(kind, tmp_path):
    from transformers import Wav2Vec2FeatureExtractor

    saved(tmp_path, kind)
    assert Wav2VecEncoder(str(tmp_path)).normalize == (kind == "wav2vec2")  # by the build, where nothing says
    for wanted in (False, True):
        Wav2Vec2FeatureExtractor(do_normalize=wanted).save_pretrained(tmp_path)
        encoder = Wav2VecEncoder(str(tmp_path)).eval()
        assert encoder.normalize == wanted
        assert Wav2VecEncoder(str(tmp_path), pretrained=False).normalize == wanted
        wave = speech(2000)
        change = (encoder(wave).features - encoder(3 * wave + 0.1).features).abs().max()
        assert (change < 1e-3) == wanted
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hears 8000 Hz"):
        Wav2VecEncoder(str(tmp_path))


def test_other_settings_get_a_cache_of_their_own():
    for kind, changes in {"wav2vec2": {"max_seconds": 0.5}, "fun_audio": {"n_window": 20}}.items():
        one, other, same = (CachedEncoder(tiny_encoder(kind, **c)).fingerprint() for c in ({}, changes, {}))
        assert one == same != other


def test_what_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="set pretrained to false"):
        Wav2VecEncoder(config={"model_type": "wavlm"})
    with pytest.raises(ValueError, match="model_type None; Wav2VecEncoder takes one of hubert, wav2vec2, wavlm"):
        Wav2VecEncoder(pretrained=False, config={})
    with pytest.raises(ValueError, match="layer must be between 1 and 2"):
        tiny_encoder("hubert", layer=3)
    with pytest.raises(ValueError, match=r"max_seconds must hold at least one frame \(320 samples\), got 0.01"):
        tiny_encoder("wavlm", max_seconds=0.01)
    with pytest.raises(ValueError, match="hubert with conv_pos_batch_norm is not supported"):
        tiny_encoder("hubert", config=config_of("hubert", conv_pos_batch_norm=True))
    with pytest.raises(ValueError, match="the wav2vec2 has an adapter"):
        tiny_encoder("wav2vec2", config=config_of("wav2vec2", add_adapter=True))
    with pytest.raises(ValueError, match="'rotary' keeps a table"):
        tiny_encoder("w2v_bert", config=config_of("w2v_bert", position_embeddings_type="rotary"))
    saved(tmp_path, "hubert")
    with pytest.raises(ValueError, match="is a hubert; W2vBertEncoder takes one of wav2vec2-bert"):
        W2vBertEncoder(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"there is no folder '/nowhere/hubert'; give a hub id"):
        Wav2VecEncoder("/nowhere/hubert")
    with pytest.raises(OSError, match="'nobody/nothing' is no folder, not in the hub's cache"):
        Wav2VecEncoder("nobody/nothing")


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "wavlm")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layers.1.attention.k_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of its wavlm.*k_proj"):
        Wav2VecEncoder(str(tmp_path))
