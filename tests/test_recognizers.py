"""Recognisers: cutting, batching, bounded decoding; and real speech where real weights are at hand."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from fac_lightning.recognizers import PocketsphinxRecognizer, WhisperRecognizer
from fac_lightning.recognizers import whisper as room
from fac_lightning.weights import find_packaged_whisper

DATA = Path(__file__).parents[2] / "shared" / "data"
JFK, DIGITS = DATA / "misc" / "jfk.flac", DATA / "fsdd" / "recordings.zip"
TINY_EN = "openai/whisper-tiny.en"
END, SUPPRESSED = 2, 7
needs_tiny_en = pytest.mark.skipif(find_packaged_whisper(TINY_EN) is None, reason="no pip package: extra demo")
needs_jfk = pytest.mark.skipif(not JFK.is_file(), reason="the recording of a speech is not at hand")


class Words:
    """Stands in for a tokenizer: a token is its number."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(str(i) for i in ids if i != END or not skip_special_tokens)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> WhisperRecognizer:
    """A random Whisper with windows of 2 s that never says token 7 and seldom ends."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    marks = {"pad_token_id": END, "bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": 3}
    model = WhisperForConditionalGeneration(
        WhisperConfig(d_model=16, vocab_size=40, max_source_positions=100, max_target_positions=60, **sizes, **marks)
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    loaded = room._Whisper(model, Words(), [3, 5], suppress=(SUPPRESSED,), suppress_first=(END,))
    monkeypatch.setattr(room, "_load", lambda name, language: loaded)
    return WhisperRecognizer(window=1.0, batch_size=2, tokens_per_second=5.0)


def noise(*seconds: float) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [0.1 * generator.standard_normal(int(16000 * n)).astype(np.float32) for n in seconds]


def test_cached_steps_equal_one_pass_over_the_whole_text(small: WhisperRecognizer) -> None:
    with torch.no_grad():
        encoded = small._encode(noise(0.5, 0.3), frames=60)
        tokens, _ = small._greedy(encoded, torch.tensor([12, 12]))
        inputs = torch.cat([torch.tensor([[3, 5]] * 2), tokens[:, :-1]], dim=1)
        hidden = small.model.model.decoder(input_ids=inputs, encoder_hidden_states=encoded).last_hidden_state
        logits = small.model.proj_out(hidden)[:, 1:]
    logits[:, :, SUPPRESSED] = -torch.inf
    logits[:, 0, END] = -torch.inf
    expected = logits.argmax(-1)
    for row in range(2):
        stop = (tokens[row] == END).nonzero()
        length = int(stop[0]) + 1 if len(stop) else tokens.shape[1]
        assert torch.equal(tokens[row, :length], expected[row, :length])
    assert encoded.shape == (2, 60, 16)


def test_a_full_window_is_encoded_as_transformers_does(small: WhisperRecognizer) -> None:
    (wave,) = noise(1.5)
    mel = small.extractor([wave], sampling_rate=16000, padding="max_length", max_length=32000, return_tensors="pt")
    with torch.no_grad():
        expected = small.model.model.encoder(mel.input_features).last_hidden_state
        torch.testing.assert_close(small._encode([wave], frames=100), expected)


def test_rows_stop_at_their_own_limit(small: WhisperRecognizer) -> None:
    small.model.proj_out.weight.data[END] = 0.0
    bias = torch.zeros(40)
    bias[END] = -1e4  # the end is never found
    small._suppress, small._suppress_first = small._suppress + bias, small._suppress_first + bias
    with torch.no_grad():
        tokens, ended = small._greedy(small._encode(noise(0.5, 0.5, 0.5), 60), torch.tensor([3, 5, 900]))
    assert tokens.shape[1] == 58  # the decoder has 60 positions, the prompt takes 2
    assert [int((row != END).sum()) for row in tokens] == [3, 5, 58]
    assert not ended.any()
    assert SUPPRESSED not in tokens


def test_order_and_batching_change_nothing(small: WhisperRecognizer) -> None:
    small.window = 2.0
    waves = noise(0.9, 0.2, 1.7, 0.0, 0.6)
    together = small(waves)
    assert together[3] == ""
    assert all(together[i] for i in (0, 1, 2, 4))
    assert together == [small([wave])[0] for wave in waves]
    assert together[::-1] == small(waves[::-1])
    assert small([]) == []


def test_a_transcript_without_end_is_made_again_on_the_full_window(
    small: WhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SILENCE", 0.2)
    asked = []

    def decode(waves: list[np.ndarray], frames: int) -> tuple[list[str], list[bool]]:
        asked.append((len(waves), frames))
        return [f"{len(wave)} in {frames}" for wave in waves], [len(wave) > 8000 for wave in waves]

    monkeypatch.setattr(small, "_decode", decode)
    assert small(noise(0.6, 0.5)) == ["9600 in 50", "8000 in 100"]
    assert asked == [(2, 50), (1, 100)]


def test_long_clips_are_cut_where_it_is_quiet(small: WhisperRecognizer) -> None:
    (wave,) = noise(100.0)
    for quiet in (28.5, 57.0, 85.0):
        wave[int(quiet * 16000) - 2000 : int(quiet * 16000) + 2000] = 0.0
    pieces = room._cut(wave, 480000, 16000)
    assert np.array_equal(np.concatenate(pieces), wave)
    assert all(0 < len(piece) <= 480000 for piece in pieces)
    np.testing.assert_allclose(np.cumsum([len(piece) for piece in pieces])[:3] / 16000, [28.5, 57.0, 85.0], atol=0.2)
    assert room._cut(wave[:480000], 480000, 16000)[0].shape == (480000,)
    assert room._cut(wave[:0], 480000, 16000) == []


def test_bad_settings_are_refused(small: WhisperRecognizer) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        WhisperRecognizer(batch_size=0)


def test_missing_weights_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_packaged_whisper", lambda name: None)
    with pytest.raises(OSError, match=r"no weights of 'openai/whisper-base'.*fac-lightning\[demo\]"):
        WhisperRecognizer()


@needs_tiny_en
@needs_jfk
def test_a_known_speech_is_understood() -> None:
    audio, rate = soundfile.read(JFK, dtype="float32")
    mono = resample_poly(audio.mean(1), 160, rate // 100)
    text = WhisperRecognizer(TINY_EN)([mono])[0].lower()
    assert "ask not what your country can do for you" in text
    assert text.count("ask") == 2


@needs_tiny_en
def test_a_folder_of_transformers_loads(tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

    source = find_packaged_whisper(TINY_EN)
    assert source is not None
    sizes = {**room.whisper_config(TINY_EN), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    WhisperForConditionalGeneration(WhisperConfig(**sizes)).save_pretrained(tmp_path)
    WhisperTokenizer(tokenizer_file=str(source.file(*source.tokenizer))).save_pretrained(tmp_path)
    recognizer = WhisperRecognizer(str(tmp_path))
    assert recognizer.prompt == [50257, 50362]
    assert isinstance(recognizer(noise(0.1))[0], str)


# -- PocketSphinx ------------------------------------------------------------------------------------------------------


def test_pocketsphinx_stays_inside_its_grammar() -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra pocketsphinx")
    recognizer = PocketsphinxRecognizer("#JSGF V1.0;\ngrammar digits;\npublic <digit> = one | two | three;")
    texts = recognizer([*noise(0.5, 0.0)])
    assert texts[0] in ("", "one", "two", "three")
    assert texts[1] == ""
    with pytest.raises(ValueError, match=r"cannot use this grammar: 'hello'.*#JSGF V1.0"):
        PocketsphinxRecognizer("hello")


@pytest.mark.skipif(not DIGITS.is_file(), reason="the recordings of digits are not at hand")
def test_pocketsphinx_hears_digits() -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra pocketsphinx")
    with zipfile.ZipFile(DIGITS) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        clips = [
            soundfile.read(io.BytesIO(archive.read(names[f"{d}_lucas_0.wav"])), dtype="float32") for d in (7, 0, 4)
        ]
    waves = [np.pad(resample_poly(clip, 16000 // rate, 1), 3200) for clip, rate in clips]
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    recognizer = PocketsphinxRecognizer(f"#JSGF V1.0;\ngrammar digits;\npublic <digit> = {' | '.join(words)};")
    assert recognizer(waves) == ["seven", "zero", "four"]
    assert recognizer(waves[::-1]) == ["four", "zero", "seven"]


def test_pocketsphinx_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match=r"fac-lightning\[pocketsphinx\]"):
        PocketsphinxRecognizer()
