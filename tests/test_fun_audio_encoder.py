"""The continuous encoder of Fun-Audio-Chat: the released numbers, chunks that stand alone, work that grows linearly."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fac_lightning.encoders import CachedEncoder, FunAudioEncoder, log_mel
from fac_lightning.encoders.fun_audio import frames_out
from fac_lightning.testing import check_encoder

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "dev"
CLOSE = {"atol": 2e-4, "rtol": 1e-4}

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the numbers of the released model are not at hand")


def tiny(n_window: int = 100, **kwargs) -> FunAudioEncoder:
    sizes = {"n_mels": 8, "d_model": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "dim": 12}
    return FunAudioEncoder(**{**sizes, "n_window": n_window, **kwargs}).eval()


def official_frames(length: int) -> int:
    return 0 if length == 0 else max(1, math.ceil(length / 2) // 2)


# -- the released numbers ----------------------------------------------------------------------------------------------


def released() -> FunAudioEncoder:
    from safetensors.torch import load_file

    sizes = json.loads((GOLDEN / "ckpt" / "config.json").read_text(encoding="utf-8"))["audio_config"]
    encoder = FunAudioEncoder(
        n_mels=sizes["num_mel_bins"],
        d_model=sizes["d_model"],
        num_layers=sizes["encoder_layers"],
        num_heads=sizes["encoder_attention_heads"],
        ffn_dim=sizes["encoder_ffn_dim"],
        n_window=sizes["n_window"],
        dim=sizes["output_dim"],
        max_source_positions=sizes["max_source_positions"],
        activation=sizes["activation_function"],
    )
    side = "continuous_audio_tower."
    weights = load_file(GOLDEN / "ckpt" / "model.safetensors")
    encoder.load_state_dict({name.removeprefix(side): w for name, w in weights.items() if name.startswith(side)})
    return encoder.eval()


def fixture(name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(GOLDEN / f"{name}.safetensors")


def unpacked(features: Tensor, lengths: Tensor) -> Tensor:
    clips = features.split(lengths.tolist(), dim=1)
    return torch.nn.utils.rnn.pad_sequence([clip.T for clip in clips], batch_first=True).transpose(1, 2)


@needs_golden
@pytest.mark.parametrize("case", ["main", "edge"])
def test_golden_a_audio_encoder(case: str) -> None:
    golden, encoder = fixture("a_audio_encoder"), released()
    lengths = golden[f"{case}.feature_lens"]
    seen = {}
    encoder.layers[0].register_forward_pre_hook(lambda _, args: seen.update(packed_after_conv=args[0]))
    encoder.layers[-1].register_forward_hook(lambda _, args, out: seen.update(packed_after_layers=out))
    encoder.ln_post.register_forward_pre_hook(lambda _, args: seen.update(pooled=args[0]))
    with torch.no_grad():
        out = encoder.forward_mel(unpacked(golden[f"{case}.input_features"], lengths), lengths)
    for name, value in seen.items():  # in the order in which they are computed
        if f"{case}.{name}" in golden:
            torch.testing.assert_close(value, golden[f"{case}.{name}"], **CLOSE)
    width = int(golden[f"{case}.speech_maxlen"])
    features = F.pad(out.features, (0, 0, 0, max(0, width - out.features.shape[1])))[:, :width]
    torch.testing.assert_close(features, golden[f"{case}.last_hidden_state"], **CLOSE)
    # the released formula says 0 where one frame is given
    formula = golden[f"{case}.formula_output_lens"]
    expected = formula.where((lengths != 1) & (lengths != 2), torch.ones_like(lengths))
    assert out.lengths.tolist() == expected.tolist()


@needs_golden
def test_golden_a_audio_encoder_allzero() -> None:
    expected = fixture("a_audio_encoder")["allzero.last_hidden_state"]
    out = released().forward_mel(torch.randn(2, 32, 28), torch.tensor([0, 0]))
    assert torch.equal(out.features, expected)
    assert out.lengths.tolist() == [0, 0]


@needs_golden
def test_golden_f_processor_mel() -> None:
    """Waveforms give the frames of the released processor, and so its features; what it fills up is zero."""
    golden, encoder = fixture("f_processor"), released()
    clips = [golden[f"in.wav{index}"].float() for index in range(3)]
    samples = torch.tensor([len(clip) for clip in clips])
    frames = golden["out.feature_attention_mask"].sum(1)
    assert frames.tolist() == [math.ceil(n / 160) for n in samples.tolist()]
    audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    theirs, ours = golden["out.input_features"], log_mel(audio, samples, 32)
    for row, count in enumerate(frames.tolist()):
        torch.testing.assert_close(ours[row, :, :count], theirs[row, :, :count], **CLOSE)
    with torch.no_grad():
        expected = encoder.forward_mel(theirs, frames)
        out = encoder(audio, samples)
    assert out.lengths.tolist() == [math.ceil(n / 640) for n in samples.tolist()]
    width = out.features.shape[1]
    torch.testing.assert_close(out.features, expected.features[:, :width], **CLOSE)


def test_the_released_sizes() -> None:
    with torch.device("meta"):
        encoder = FunAudioEncoder()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 640_304_128
    shapes = {name: tuple(weight.shape) for name, weight in encoder.state_dict().items()}
    assert len(shapes) == 4 + 32 * 15 + 4 + 1
    assert shapes["conv2.weight"] == (1280, 1280, 3)
    assert shapes["layers.31.self_attn.k_proj.weight"] == (1280, 1280)
    assert shapes["layers.31.fc1.weight"] == (5120, 1280)
    assert shapes["proj.weight"] == (4096, 1280)
    assert shapes["audio_bos_eos_token.weight"] == (2, 4096)
    assert "layers.0.self_attn.k_proj.bias" not in shapes
    assert (encoder.sample_rate, encoder.hop_length, encoder.dim, encoder.frame_rate) == (16000, 640, 4096, 25.0)


# -- what must be true -------------------------------------------------------------------------------------------------


def test_fun_audio_encoder_keeps_the_contract() -> None:
    check_encoder(tiny())
    check_encoder(CachedEncoder(tiny()))


@pytest.mark.parametrize("n_window", [1, 5, 8])
def test_the_contract_holds_over_several_chunks(n_window: int) -> None:
    check_encoder(tiny(n_window), num_frames=23)


def naive(encoder: FunAudioEncoder, mel: Tensor) -> Tensor:
    """Features ``(F, dim)`` of one clip ``(M, L)``, written as one would say it: chunk by chunk, pair by pair."""
    positions = []
    for start in range(0, mel.shape[1], 2 * encoder.n_window):
        chunk = mel[:, start : start + 2 * encoder.n_window]
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(chunk)))).T
        half = hidden.shape[1] // 2
        for place, position in enumerate(hidden):
            angles = torch.tensor([place * math.exp(-k * math.log(10000) / (half - 1)) for k in range(half)])
            position += torch.cat([angles.sin(), angles.cos()])
        for layer in encoder.layers:
            attention, normed = layer.self_attn, layer.self_attn_layer_norm(hidden)
            heads = []
            for q, k, v in zip(
                attention.q_proj(normed).chunk(attention.num_heads, dim=1),
                attention.k_proj(normed).chunk(attention.num_heads, dim=1),
                attention.v_proj(normed).chunk(attention.num_heads, dim=1),
                strict=True,
            ):
                heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(dim=1) @ v)
            hidden = hidden + attention.out_proj(torch.cat(heads, dim=1))
            hidden = hidden + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(hidden))))
        positions.append(hidden)
    whole = torch.cat(positions)
    pairs = [(whole[at] + whole[at + 1]) / 2 for at in range(0, len(whole) - 1, 2)] or [whole[0]]
    return encoder.proj(encoder.ln_post(torch.stack(pairs)))


@pytest.mark.parametrize("n_window", [3, 4, 7, 50])
def test_every_clip_is_what_it_is_chunk_by_chunk(n_window: int) -> None:
    """Odd windows too, where a pair of positions straddles two chunks."""
    encoder = tiny(n_window)
    for parameter in encoder.parameters():  # louder than a fresh model, so that attention and positions matter
        parameter.data += 0.3 * torch.randn_like(parameter)
    counts = [41, 0, 1, 2, 3, 4 * n_window, 2 * n_window + 1, 2 * n_window, 2 * n_window - 1, 29, 0]
    mel = torch.randn(len(counts), 8, max(counts))
    with torch.no_grad():
        out = encoder.forward_mel(mel, torch.tensor(counts))
        assert out.lengths.tolist() == [official_frames(count) for count in counts]
        for row, count in enumerate(counts):
            held = official_frames(count)
            assert not out.features[row, held:].any()
            if count:
                expected = naive(encoder, mel[row, :, :count])
                torch.testing.assert_close(out.features[row, :held], expected, atol=1e-4, rtol=1e-4)


def test_other_clips_and_what_stands_behind_a_clip_change_nothing() -> None:
    encoder = tiny(6)
    mel, counts = torch.randn(3, 8, 50), [17, 50, 24]
    with torch.no_grad():
        together = encoder.forward_mel(mel, torch.tensor(counts)).features
        assert torch.equal(encoder.forward_mel(F.pad(mel, (0, 90)), torch.tensor(counts)).features[:, :12], together)
        for row, count in enumerate(counts):
            alone = encoder.forward_mel(mel[row : row + 1, :, :count], torch.tensor([count])).features[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        dirty = mel.masked_fill((torch.arange(50) >= torch.tensor(counts)[:, None])[:, None], torch.nan)
        assert torch.equal(encoder.forward_mel(dirty, torch.tensor(counts)).features, together)


def test_a_chunk_sees_no_other_chunk() -> None:
    encoder = tiny(4)
    mel = torch.randn(1, 8, 24)
    changed = mel.clone()
    changed[..., 8:16] += 1
    with torch.no_grad():
        before, after = (encoder.forward_mel(x, torch.tensor([24])).features[0] for x in (mel, changed))
    assert (before != after).any(1).tolist() == [False, False, True, True, False, False]


def test_number_of_frames() -> None:
    counts = torch.arange(2000)
    assert frames_out(counts).tolist() == [official_frames(count) for count in range(2000)]
    samples = torch.arange(1, 20000)
    short = -(-samples // 640) - frames_out(-(-samples // 160))
    assert set(short.tolist()) == {0, 1}


def test_a_frame_the_released_encoder_does_not_give_is_zero() -> None:
    encoder = tiny()
    with torch.no_grad():
        out = encoder(torch.randn(2, 1300), torch.tensor([1300, 640 + 321]))  # 20 ms of a third frame; two frames
    assert out.lengths.tolist() == [3, 2]
    assert out.features.abs().sum(2).ne(0).tolist() == [[True, True, False], [True, True, False]]


def test_log_mel_of_a_long_clip_equals_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    audio = 0.1 * torch.randn(35 * 16000)  # longer than Whisper's own 30 s
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=40)
    theirs = extractor(audio.numpy(), sampling_rate=16000, return_tensors="pt").input_features[..., :3500]
    ours = log_mel(audio[None], torch.tensor([len(audio)]), 8)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_that_is_used() -> None:
    encoder = tiny(5).train()
    mel = torch.randn(3, 8, 33, requires_grad=True)
    encoder.forward_mel(mel, torch.tensor([33, 0, 12])).features.square().sum().backward()
    assert mel.grad[0].abs().sum(0).gt(0).all()
    assert not mel.grad[1].any()
    idle = [name for name, w in encoder.named_parameters() if w.grad is None or not w.grad.any()]
    assert idle == ["audio_bos_eos_token.weight"]
    assert not encoder.audio_bos_eos_token.weight.requires_grad


def test_chunks_in_portions_give_what_all_at_once_give(monkeypatch) -> None:
    plain, parted = tiny(5).train(), tiny(5).train()
    parted.load_state_dict(plain.state_dict())
    mel, lengths = torch.randn(4, 8, 47), torch.tensor([33, 0, 47, 12])  # 4, 0, 5 and 2 chunks of 10 frames
    calls = []
    parted.layers[0].register_forward_pre_hook(lambda _, given: calls.append(given[1].rows))
    features = [plain.forward_mel(mel, lengths).features]
    monkeypatch.setattr("fac_lightning.encoders.fun_audio.CPU_BYTES", 4 * 5 * 32 * 4)  # of four chunks' feed-forward
    features.append(parted.forward_mel(mel, lengths).features)
    assert calls == [4, 4, 3]
    torch.testing.assert_close(*features)
    for one in features:
        one.square().sum().backward()
    for one, other in zip(plain.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain = tiny(5).train()
    saving = tiny(5, gradient_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    mel, lengths = torch.randn(2, 8, 33), torch.tensor([33, 12])
    for encoder in (plain, saving):
        encoder.forward_mel(mel, lengths).features.square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_weights_that_arrive_after_the_meta_device_are_all_there_is() -> None:
    """Nothing but the checkpoint is needed: positions are not lost with the memory of a model on the meta device."""
    expected = tiny()
    with torch.device("meta"):
        encoder = tiny()
    encoder.to_empty(device="cpu").load_state_dict(expected.state_dict())
    mel, lengths = torch.randn(1, 8, 250), torch.tensor([250])
    with torch.no_grad():
        assert torch.equal(encoder.forward_mel(mel, lengths).features, expected.forward_mel(mel, lengths).features)
    with torch.device("meta"):
        encoder = tiny()
    encoder.load_state_dict(expected.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(encoder.forward_mel(mel, lengths).features, expected.forward_mel(mel, lengths).features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    encoder, mel, lengths = tiny(), torch.randn(2, 8, 250), torch.tensor([250, 77])
    half = copy.deepcopy(encoder).to(dtype)
    with torch.no_grad():
        expected, got = encoder.forward_mel(mel, lengths).features, half.forward_mel(mel, lengths).features
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)
        assert half(torch.randn(1, 2000)).features.dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            mixed = encoder.forward_mel(mel, lengths).features
        torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)


def test_half_precision_does_not_overflow() -> None:
    encoder = tiny().half()
    encoder.layers[0].fc2.bias.data.fill_(60000.0)
    encoder.layers[1].fc2.bias.data.fill_(60000.0)
    with torch.no_grad():
        assert encoder.forward_mel(torch.randn(1, 8, 40), torch.tensor([40])).features.isfinite().all()


# -- work and memory ---------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


def cost(seconds: int, also: int) -> tuple[int, int]:
    """Numbers in the largest tensor, and floating point operations, of one clip beside a shorter one."""
    encoder, mel = tiny(num_layers=1), torch.zeros(2, 8, seconds * 100)
    lengths = torch.tensor([seconds * 100, also])
    with torch.no_grad(), LargestTensor() as largest, FlopCounterMode(display=False) as flops:
        encoder.forward_mel(mel, lengths)
    return largest.numel, flops.get_total_flops()


@pytest.mark.parametrize("also", [0, 50])  # all chunks full; one that is not
def test_work_and_memory_grow_with_the_length_of_speech_and_not_with_its_square(also: int) -> None:
    (short, short_flops), (long, long_flops) = cost(30, also), cost(400, also)
    assert long <= 1.01 * 400 / 30 * short
    assert long_flops <= 1.01 * 400 / 30 * short_flops
    assert long < 20000**2 / 100  # 20,000 positions: no mask over all of them


def test_clips_without_speech_cost_nothing() -> None:
    encoder = tiny(num_layers=1)
    flops = []
    for rows in (1, 9):
        lengths = torch.zeros(rows, dtype=torch.int64)
        lengths[0] = 300
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder.forward_mel(torch.zeros(rows, 8, 600), lengths)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_unusable_sizes_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="d_model 10 must be even, at least 4 and a multiple of num_heads 4"):
        tiny(d_model=10, num_heads=4)
    with pytest.raises(ValueError, match=r"n_window must be between 1 and max_source_positions \(20\).*21"):
        tiny(21, max_source_positions=20)
    with pytest.raises(ValueError, match="activation 'geluu' is not one that transformers knows"):
        tiny(activation="geluu")
    with pytest.raises(ValueError, match="mel has 9 bands but the encoder takes 8"):
        tiny().forward_mel(torch.zeros(1, 9, 4), torch.tensor([4]))
    for lengths in ([5], [-1], [4, 4]):
        with pytest.raises(ValueError, match="one number of mel frames between 0 and 4 for each of 1 clips"):
            tiny().forward_mel(torch.zeros(1, 8, 4), torch.tensor(lengths))


def test_another_activation() -> None:
    gelu, relu = tiny(), tiny(activation="relu")
    relu.load_state_dict(gelu.state_dict())
    mel = torch.randn(1, 8, 40)
    with torch.no_grad():
        one, other = (e.forward_mel(mel, torch.tensor([40])).features for e in (gelu, relu))
    assert not torch.allclose(one, other)
    assert gelu.forward_mel(torch.zeros(0, 8, 40), torch.zeros(0, dtype=torch.int64)).features.shape == (0, 10, 12)
