"""Parts are told alike in every process, and otherwise with other settings: a resumed run knows its data again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fac_lightning.data import LinearModes, SpeechChatDataModule
from fac_lightning.data.distortions import Chain, Distortion, Volume
from fac_lightning.data.part_text import part_text
from fac_lightning.replies import FrameEnd, GroupEnd


def halved(audio):
    return audio / 2


class LateEnd(FrameEnd):
    """A rule that extends a dataclass and shows nothing of its own."""

    def __init__(self, lead_in=0, late=0, marks=()):
        super().__init__(lead_in)
        object.__setattr__(self, "late", late)
        object.__setattr__(self, "_marks", set(marks))


class Louder(Distortion):
    """No dataclass; keeps its factor under a name of its own."""

    def __init__(self, factor, law=np.tanh, noise=None):
        self.by, self.law, self.noise = factor, law, noise

    def distort(self, audio, sample_rate, rng):
        return self.by * audio


@dataclass(frozen=True)
class Holds(Distortion):
    part: Distortion

    def distort(self, audio, sample_rate, rng):
        return audio


def test_dataclasses_are_taken_at_their_word():
    for part in (FrameEnd(2), GroupEnd(), LinearModes({"STC": 1.0}, 2.0), Chain([Volume()])):
        assert part_text(part, "data.reply") == str(part)


@pytest.mark.parametrize(
    ("part", "other", "told"),
    [
        (lambda: LateEnd(1, 2), lambda: LateEnd(1, 3), "test_part_text.LateEnd(lead_in=1, late=2, marks={})"),
        (lambda: LateEnd(marks="ba"), lambda: LateEnd(marks="b"), "LateEnd(lead_in=0, late=0, marks={'a', 'b'})"),
        (lambda: Louder(2.0), lambda: Louder(3.0), "test_part_text.Louder(by=2.0, law=<ufunc 'tanh'>, noise=None)"),
        (lambda: Louder(2.0, len), lambda: Louder(2.0, max), "law=builtins.len"),
        (lambda: Louder(2.0, halved), lambda: Louder(2.0), "law=test_part_text.halved"),
        (lambda: Louder(2.0, partial(max, 1)), lambda: Louder(2.0, partial(max, 2)), "law=functools.partial(<built-in"),
        (
            lambda: Louder(2.0, partial(halved, 1)),
            lambda: Louder(2.0, partial(halved, 2)),
            "func=test_part_text.halved",
        ),
        (lambda: Louder(np.arange(4)), lambda: Louder(np.arange(4) + 1), "by=int64[4] "),
        (lambda: Louder(torch.ones(())), lambda: Louder(torch.zeros(())), "by=torch.float32[] "),
        (lambda: Holds(Louder(2.0)), lambda: Holds(Louder(3.0)), "Holds(part=test_part_text.Louder(by=2.0"),
        (lambda: Chain([Louder(2.0)]), lambda: Chain([Louder(3.0)]), "Chain(distortions=[test_part_text.Louder(by=2.0"),
        (lambda: Louder({"a": Path("x")}), lambda: Louder({"a": Path("y")}), "by={'a': x}"),
    ],
)
def test_class_and_settings_are_told_alike_and_nothing_of_memory(part, other, told):
    text, again = (part_text(part(), "data.augment") for _ in range(2))
    assert told in text
    assert text == again
    assert "0x" not in text
    assert part_text(other(), "data.augment") != text


def test_sets_are_told_in_one_order():
    assert list({0, 8}) != list({8, 0})
    assert part_text(LateEnd(marks=[0, 8]), "") == part_text(LateEnd(marks=[8, 0]), "")


def test_what_nobody_could_know_again_is_refused_when_the_data_are_set_up():
    rule = LateEnd(late=np.random.default_rng(0))
    told = r"^data\.reply\.late\.bit_generator is a PCG64, .* give LateEnd a __repr__ with its settings"
    with pytest.raises(ValueError, match=told):
        SpeechChatDataModule("nowhere", "nowhere", reply=rule)
    with pytest.raises(ValueError, match=r"data\.augment\.by is a lock"):
        part_text(Louder(threading.Lock()), "data.augment")
    round_and_round = Louder(1.0)
    round_and_round.by = round_and_round
    with pytest.raises(ValueError, match=r"data\.augment\.by is a Louder"):
        part_text(round_and_round, "data.augment")


def test_the_settings_of_the_stream_have_the_texts():
    parts = {"reply": LateEnd(1), "augment": Louder(2.0), "mode_schedule": LinearModes({"STC": 1.0}, 2.0)}
    module = SpeechChatDataModule("nowhere", "nowhere", **parts)
    settings = module._stream_settings()
    assert settings["reply"] == part_text(LateEnd(1), "")
    assert settings["augment"] == part_text(Louder(2.0), "")
    assert settings["modes"] == f"{{'S2M': 1.0}} by {parts['mode_schedule']}"
