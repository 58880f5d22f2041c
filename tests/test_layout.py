"""Layout: a golden row written by hand, then what must hold of every row."""

import numpy as np
import pytest

from fac_lightning.data import Clip, SpokenTurn, fit_mode, lay_out
from fac_lightning.prompts import ASR_INSTRUCTION, MODES, SPECIAL_TOKENS, TTS_INSTRUCTION, ChatFormat
from fac_lightning.types import IGNORE, SpeechGeometry

I = IGNORE  # noqa: E741
BOS, EOS, PAD = 100, 101, 102


class Letters:
    """A tokenizer of characters: special tokens are 0 .. 6, a character is 10 + its code point."""

    def encode(self, text, add_special_tokens=True):
        ids = []
        while text:
            special = next((t for t in SPECIAL_TOKENS if text.startswith(t)), None)
            ids.append(SPECIAL_TOKENS.index(special) if special else 10 + ord(text[0]))
            text = text[len(special or text[0]) :]
        return ids

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(chr(i - 10) for i in token_ids if i >= 10)

    def convert_tokens_to_ids(self, tokens):
        return SPECIAL_TOKENS.index(tokens)


@pytest.fixture
def chat():
    return ChatFormat(Letters())


@pytest.fixture
def geometry():
    return SpeechGeometry(
        sample_rate=1000, samples_per_position=200, group_size=2, num_codebooks=1, codebook_size=100, vocab_size=400
    )


def heard(text, samples):
    return SpokenTurn("user", text, clip=Clip(samples, lambda: np.zeros(samples, np.float32)))


def said(text, codes):
    return SpokenTurn("assistant", text, codes=np.asarray(codes)[:, None], seconds=len(codes) / 10)


def test_golden_row(chat, geometry):
    """User: 401 samples = 3 positions. Assistant: "ok" with 4 frames and eos = 3 groups of 2, after 1 of bos."""
    row = lay_out("d", [heard("?", 401), said("ok", [7, 8, 9, 3])], chat, geometry, "S2M", lead_in=1, system="s")
    im_start, im_end, audio, audio_bos, audio_eos, sil = 1, 2, 3, 4, 5, 6
    nl, o, k = 10 + ord("\n"), 10 + ord("o"), 10 + ord("k")
    system = [im_start, *chat.encode("system\ns"), im_end, nl]  # 11 positions
    user = [im_start, *chat.encode("user\n"), audio_bos, audio, audio, audio, audio_eos, im_end, nl]  # 13
    opening = [im_start, *chat.encode("assistant\n")]  # 11
    reply = [audio_bos, o, k, sil, sil, audio_eos, im_end, nl]
    assert row.id == "d/S2M"
    assert row.text_ids.tolist() == system + user + opening + reply
    assert row.feature_positions.tolist() == [18, 19, 20]
    assert np.flatnonzero(~row.text_mask).tolist() == [18, 19, 20]
    # audio_bos is at 35, p_1 .. p_4 are 36 .. 39
    assert row.text_labels.tolist() == [I] * 34 + [audio_bos, o, k, sil, sil, audio_eos, im_end, I, I]
    assert row.code_positions.tolist() == [36, 37, 38, 39]
    assert row.codes[..., 0].tolist() == [[BOS, BOS], [7, 8], [9, 3], [EOS, PAD]]
    assert row.speech_positions.tolist() == [36, 37, 38]
    assert row.speech_labels[..., 0].tolist() == [[7, 8], [9, 3], [EOS, I]]
    assert row.reply_lengths.tolist() == [3]
    assert (row.audio_seconds, row.seconds) == (0.401, 0.801)
    assert (row.num_text_labels, row.num_speech_labels) == (7, 5)


def test_without_lead_in_the_first_group_is_learned_from_audio_bos(chat, geometry):
    row = lay_out("d", [heard("?", 1), said("ok", [7, 8, 9])], chat, geometry, "S2M")
    (bos,) = np.flatnonzero(row.text_ids == chat.audio_bos)[1:]
    assert row.speech_positions.tolist() == [bos, bos + 1]
    assert row.code_positions.tolist() == [bos + 1, bos + 2]
    assert row.speech_labels[..., 0].tolist() == [[7, 8], [9, EOS]]


def test_text_longer_than_speech_is_never_cut(chat, geometry):
    row = lay_out("d", [heard("?", 1), said("a long answer", [7])], chat, geometry, "S2M")
    (bos,) = np.flatnonzero(row.text_ids == chat.audio_bos)[1:]
    assert row.code_positions.tolist() == [bos + 1]
    assert row.text_ids[bos + 14] == chat.audio_eos
    assert chat.sil not in row.text_ids
    assert chat.decode(row.text_labels[row.text_labels != IGNORE].tolist()) == "a long answer"


@pytest.fixture
def dialogue():
    return [
        heard("hello", 399),
        said("hi you", range(9)),
        SpokenTurn("user", "written"),
        SpokenTurn("assistant", "noted"),
        heard("bye", 1),
        said("see you soon", [5]),
    ]


@pytest.mark.parametrize("lead_in", [0, 2])
@pytest.mark.parametrize("codebooks", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_invariants(chat, dialogue, mode, codebooks, lead_in):
    geometry = SpeechGeometry(1000, 200, 4, codebooks, 100, 400)
    turns = [
        t if t.codes is None else SpokenTurn(t.role, t.text, codes=np.repeat(t.codes, codebooks, 1)) for t in dialogue
    ]
    row = lay_out("d", turns, chat, geometry, mode, lead_in)

    learned = np.flatnonzero(row.text_labels != IGNORE)
    assert (row.text_labels[learned] == row.text_ids[learned + 1]).all()
    assert row.text_mask.sum() == len(row) - len(row.feature_positions)
    assert len(row.feature_positions) == sum(-(-c.num_samples // 200) for c in row.clips)
    assert (row.text_ids[row.feature_positions] == chat.audio).all()
    assert row.reply_lengths.sum() == len(row.speech_positions) == len(row.speech_labels)
    assert len(row.codes) == len(row.code_positions) == len(row.speech_labels) + lead_in * len(row.reply_lengths)
    assert len(np.unique(row.code_positions)) == len(row.code_positions)

    # every group is learned from the position before the one that holds it, replies are contiguous
    ends = row.reply_lengths.cumsum()
    into = np.cumsum(row.reply_lengths + lead_in)
    for n, end, code_end in zip(row.reply_lengths, ends, into, strict=True):
        positions = row.speech_positions[end - n : end]
        assert (np.diff(positions) == 1).all()
        assert (row.code_positions[code_end - n : code_end] == positions + 1).all()
        labels, put_in = row.speech_labels[end - n : end], row.codes[code_end - n : code_end]
        assert (labels[labels != IGNORE] == put_in[labels != IGNORE]).all()
        assert (put_in[labels == IGNORE] == PAD).all()

    # the labels hold the dialogue
    speech = mode in ("S2M", "T2M", "TTS", "STC", "SAC", "SUC")
    text = {
        "ASR": "hellobye",
        "TTS": "hi yousee you soon",
        "STC": "hello\nhi you\nhi younotedbye\nsee you soon\nsee you soon",
        "SAC": "hi you\nhi younotedsee you soon\nsee you soon",
        "SUC": "hello\nhi younotedbye\nsee you soon",
    }.get(mode, "hi younotedsee you soon")
    assert chat.decode(row.text_labels[learned].tolist()) == text
    codes = row.speech_labels.reshape(-1, codebooks)
    spoken = [] if not speech else [*range(9), EOS, 5, EOS]
    assert codes[codes[:, 0] != IGNORE].tolist() == [[c] * codebooks for c in spoken]
    assert len(row.clips) == (2 if MODES[mode][0] else 0)


def test_a_turn_without_speech_stands_as_text_among_spoken_ones(chat, geometry, dialogue):
    row = lay_out("d", dialogue, chat, geometry, "S2M", system="")
    assert "written" in chat.decode(row.text_ids.tolist())
    assert "hello" not in chat.decode(row.text_ids.tolist())
    assert (row.text_ids == chat.audio_bos).sum() == 4


def test_instructions_of_asr_and_tts(chat, geometry):
    turns = [heard("hello", 5), said("hi", [1])]
    asr = chat.decode(lay_out("d", turns, chat, geometry, "ASR").text_ids.tolist())
    tts = chat.decode(lay_out("d", turns, chat, geometry, "TTS").text_ids.tolist())
    assert f"user\n\n{ASR_INSTRUCTION}\nassistant\nhello\n" in asr
    assert f"user\n{TTS_INSTRUCTION}\nhi\nassistant\nhi\n" in tts


@pytest.mark.parametrize(
    ("mode", "user", "assistant", "expected"),
    [
        ("S2M", True, True, "S2M"),
        ("S2M", False, True, "T2M"),
        ("S2M", True, False, "S2T"),
        ("S2M", False, False, "T2T"),
        ("S2T", False, True, "T2T"),
        ("T2M", True, False, "T2T"),
        ("T2T", True, True, "T2T"),
        ("ASR", True, False, "ASR"),
        ("ASR", False, True, None),
        ("TTS", False, True, "TTS"),
        ("TTS", True, False, None),
    ],
)
def test_modes_fall_back_to_what_a_dialogue_has(mode, user, assistant, expected):
    turns = [heard("x", 3) if user else SpokenTurn("user", "x")]
    turns += [said("y", [1]) if assistant else SpokenTurn("assistant", "y")]
    assert fit_mode(mode, turns) == expected


def test_text_needs_no_geometry_and_speech_does(chat):
    turns = [heard("x", 3), said("y", [1])]
    assert len(lay_out("d", turns, chat, mode="T2T").codes) == 0
    with pytest.raises(ValueError, match=r"give SpeechLM.geometry, or use mode T2T"):
        lay_out("d", turns, chat, mode="S2T")


def test_mistakes_are_named(chat, geometry):
    with pytest.raises(ValueError, match="unknown mode 'M2S'; choose from S2M"):
        fit_mode("M2S", [])
    with pytest.raises(ValueError, match="take the mode fit_mode gives"):
        lay_out("d", [SpokenTurn("user", "x")], chat, geometry, "S2M")
    two = SpokenTurn("assistant", "x", codes=np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"shape \(3, 2\); the model has 1 codebooks"):
        lay_out("d", [two], chat, geometry, "T2M")
