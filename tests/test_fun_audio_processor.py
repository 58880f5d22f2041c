"""The released Fun-Audio-Chat's processor: its numbers on every golden checkpoint, and what it must not swallow."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from fac_lightning.interop.fun_audio_chat import FunAudioChatProcessor
from fac_lightning.interop.fun_audio_chat.processor import DEFAULT_CHAT_TEMPLATE
from fac_lightning.prompts import (
    AUDIO,
    AUDIO_BOS,
    AUDIO_EOS,
    AUDIO_PAD,
    AUDIO_TEMPLATE,
    DEFAULT_SYSTEM_PROMPT,
    S2M_PROMPT,
    S2T_PROMPT,
    SPOKEN_S2M_PROMPT,
    function_calling_prompt,
)
from fac_lightning.weights import CheckpointError

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
SETS = sorted(path.parent for path in GOLDEN.glob("*/f_processor.json"))
GENERATIONS = sorted(path for folder in SETS for path in folder.glob("e_gen_*.safetensors"))

pytestmark = pytest.mark.skipif(not SETS, reason="shared/golden is not there: it lies beside the repository")
golden_sets = pytest.mark.parametrize("golden", SETS, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def processor():
    return FunAudioChatProcessor.from_pretrained(SETS[0] / "ckpt")


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def assert_equal(found, expected):
    """Same keys, same types, and ids and masks exactly."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        if value.is_floating_point():
            torch.testing.assert_close(found[key], value, atol=5e-5, rtol=1e-4, msg=key)
        else:
            assert torch.equal(found[key], value), key


@golden_sets
def test_f_processor(golden):
    told = json.loads((golden / "f_processor.json").read_text(encoding="utf-8"))
    tensors = load_file(golden / "f_processor.safetensors")
    waveforms = [tensors[f"in.wav{i}"].numpy() for i in range(len(told["samples"]))]
    processor = FunAudioChatProcessor.from_pretrained(golden / "ckpt")
    text = processor.apply_chat_template(told["conversation"])
    assert text == told["rendered"]
    expected = {key[4:]: value for key, value in tensors.items() if key.startswith("out.")}
    assert_equal(dict(processor(text=text, audio=waveforms)), expected)
    assert_equal(dict(processor(text=[text], audio=[torch.from_numpy(x) for x in waveforms])), expected)
    assert [processor.speech_tokens(len(x)) for x in waveforms] == told["speech_tokens"]
    assert expected["feature_attention_mask"].sum(1).tolist() == told["mel_frames"]


@pytest.mark.parametrize("path", GENERATIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_e_gen(path):
    """The waveforms were not kept, so others of the same lengths: all but the features must be as they were."""
    golden, tensors = path.parent, load_file(path)
    processor = FunAudioChatProcessor.from_pretrained(golden / "ckpt")
    meta = json.loads((golden / "e_gen_meta.json").read_text(encoding="utf-8"))[path.stem.removeprefix("e_gen_")]
    ids, mask = tensors["in.input_ids"], tensors["in.attention_mask"]
    # The meta data of a batch have no prompts; its ids, placeholders folded again, tell them.
    decoded = [processor.decode(row[keep.bool()]) for row, keep in zip(ids, mask, strict=True)]
    prompts = [re.sub(f"({re.escape(AUDIO)})+", AUDIO, text) for text in decoded]
    if "prompt" in meta:
        assert prompts == [meta["prompt"]]
    audios = None
    if "in.speech_ids" in tensors:
        frames = tensors["in.feature_attention_mask"].sum(1)
        audios = [noise(int(n) * processor.feature_extractor.hop_length) for n in frames]
        tokens = tensors["in.speech_attention_mask"].sum(1).tolist()
        audios = [
            audio[: next(n for n in range(len(audio), 0, -1) if processor.speech_tokens(n) == count)]
            for audio, count in zip(audios, tokens, strict=True)
        ]
    processor.text_tokenizer.padding_side = "left"
    found = dict(processor(text=prompts, audio=audios, padding=True))
    expected = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    if audios is not None:
        assert found["input_features"].shape == expected["input_features"].shape
        found["input_features"] = expected["input_features"]
    assert_equal(found, expected)


def test_token_counts_are_those_of_the_released_float_rule(processor):
    short = [n for n in range(480_000) if processor.speech_tokens(n) != n // 640]
    assert processor.speech_tokens(18560) == 28
    assert len(short) == 37
    assert all(n % 640 == 0 and processor.speech_tokens(n) == n // 640 - 1 for n in short)


# ---- placeholders


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{A}", "{b}{A}{A}{A}{e}"),
        ("x{A}y", "x{b}{A}{A}{A}{e}y"),
        ("{b}{A}{e}", "{b}{A}{A}{A}{e}"),
        ("{b}{A}", "{b}{A}{A}{A}"),
        ("{A}{e}", "{A}{A}{A}{e}"),
        ("{e}{A}{b}", "{e}{b}{A}{A}{A}{e}{b}"),
        ("{b} {A}{e}", "{b} {A}{A}{A}{e}"),
    ],
)
def test_marks_are_added_only_where_none_of_the_two_stands(processor, text, expanded):
    names = {"A": AUDIO, "b": AUDIO_BOS, "e": AUDIO_EOS}
    found = processor(text=text.format(**names), audio=noise(11 * 640 + 1))  # 11 tokens, 3 groups
    assert processor.decode(found["input_ids"][0]) == expanded.format(**names)


def test_every_placeholder_takes_its_own_audio_over_all_texts(processor):
    texts = [f"{AUDIO}{AUDIO_BOS}{AUDIO}{AUDIO_EOS}", "no audio", AUDIO]
    found = processor(text=texts, audio=[noise(640 * n) for n in (3, 12, 6)], padding=True)
    audio = processor.text_tokenizer.convert_tokens_to_ids(AUDIO)
    assert (found["input_ids"] == audio).sum(1).tolist() == [1 + 3, 0, 2]
    assert found["speech_ids"].shape == (3, 15)
    assert found["speech_attention_mask"].sum(1).tolist() == [3, 12, 6]


@pytest.mark.parametrize(
    ("text", "audio", "message"),
    [
        (AUDIO, None, r"1 text\(s\) with 1 <\|AUDIO\|> in all, but 0 audio\(s\): give one audio per placeholder"),
        ("none", [noise(640)], r"with 0 <\|AUDIO\|> in all, but 1 audio\(s\)"),
        ([AUDIO, AUDIO], [noise(640)] * 3, r"2 text\(s\) with 2 <\|AUDIO\|> in all, but 3 audio\(s\)"),
    ],
)
def test_placeholders_and_audios_must_be_as_many(processor, text, audio, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text, audio=audio)


def test_a_clip_too_short_for_a_token_has_no_placeholder(processor):
    found = processor(text=AUDIO, audio=noise(600))
    assert processor.decode(found["input_ids"][0]) == AUDIO_BOS + AUDIO_EOS
    assert found["speech_ids"].shape == (1, 0)


def test_texts_of_several_lengths_need_padding(processor):
    with pytest.raises(ValueError, match=r"texts have 1 to 3 tokens; give padding=True"):
        processor(text=["a", "abc"])
    found = processor(text=["a", "abc"], padding=True)
    assert found.keys() == {"input_ids", "attention_mask"}
    assert found["attention_mask"].sum(1).tolist() == [1, 3]
    assert isinstance(processor(text="a", return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="return_tensors is 'tf'; choose 'pt' or 'np'"):
        processor(text="a", return_tensors="tf")


# ---- audios


def test_json_audio_gives_its_own_tokens_and_its_file(processor, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([noise(24000, 1), noise(24000, 2)], 1), 24000, subtype="FLOAT")
    entries = [
        {"path": str(tmp_path / "a.wav"), "token": AUDIO_PAD * 26, "text": ""},  # the server of the demo rounds up
        {"path": "", "token": AUDIO_BOS * 2 + "[AU0003][AU0060]", "text": "hi"},
        {"wav_path": str(tmp_path / "a.wav")},
    ]
    found = processor(text=AUDIO * 3, audio=[json.dumps(entries[0]), entries[1], json.dumps(entries[2])])
    names = ["[AU0003]", "[AU0060]", AUDIO_BOS, AUDIO_PAD]
    third, last, bos, pad = processor.speech_tokenizer.convert_tokens_to_ids(names)
    assert found["speech_attention_mask"].sum(1).tolist() == [26, 4, 25]
    assert found["speech_ids"][0].unique().tolist() == [pad]
    assert found["speech_ids"][1].tolist() == [bos, bos, third, last] + [pad] * 26
    assert found["feature_exist_mask"].tolist() == [True, False, True]
    assert found["input_features"].shape[0] == 2
    assert found["feature_attention_mask"].sum(1).tolist() == [100, 100]  # one second
    assert torch.equal(found["input_features"][0], found["input_features"][1])


def test_tokens_alone_have_no_features(processor):
    found = processor(text=AUDIO, audio='{"path": "", "token": "[AU0001][AU0002]", "text": ""}')
    assert "input_features" not in found
    assert found["feature_exist_mask"].tolist() == [False]


def test_a_waveform_of_another_rate_is_resampled(processor):
    seconds = np.arange(48000) / 48000
    given = processor(text=AUDIO, audio=np.sin(2 * np.pi * 440 * seconds), sampling_rate=48000)
    plain = processor(text=AUDIO, audio=np.sin(2 * np.pi * 440 * seconds[::3]))
    assert torch.equal(given["input_ids"], plain["input_ids"])
    inner = slice(5, 95)
    torch.testing.assert_close(
        given["input_features"][0, :6, inner], plain["input_features"][0, :6, inner], atol=0.02, rtol=0
    )


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("speech.wav", r"audio 0: 'speech.wav' is not JSON .* give a waveform, or \{\"path\""),
        ("[1]", r"audio 0: '\[1\]' is no JSON object"),
        ({"text": "hi"}, r"audio 0: \{'text': 'hi'\} names neither a waveform nor speech tokens"),
        ({"path": "nowhere/x.wav"}, r"audio 0: nowhere/x.wav cannot be read as audio"),
        (
            {"token": "[AU0001] [AU9999]"},
            r"audio 0: 2 token\(s\) of .* are not in the speech tokenizer; write them like",
        ),
        (np.zeros((2, 640), np.float32), r"ndarray of shape \(2, 640\); give a mono waveform"),
        ([np.zeros((640, 2), np.float32)], r"audio 0: a waveform of shape \(640, 2\)"),
        ([np.full(640, np.nan)], r"audio 0: .* finite: False"),
        ([np.zeros(0)], r"audio 0: .* at least one"),
    ],
)
def test_audios_that_cannot_be_used_are_named(processor, audio, message):
    with pytest.raises(ValueError, match=message):
        processor(text=AUDIO, audio=audio)


def test_what_the_extractor_cuts_off_is_said(processor, caplog):
    limit = processor.feature_extractor.n_samples
    with caplog.at_level(logging.WARNING):
        processor(text=AUDIO, audio=noise(limit))
        assert not caplog.records
        found = processor(text=AUDIO + AUDIO, audio=[noise(640), noise(limit + 24000)])
    (record,) = caplog.records
    assert "audio 1 lasts 4.50 s, but chunk_length of the feature extractor is 3 s: the last 1.50 s" in record.message
    assert found["feature_attention_mask"].sum(1).tolist() == [4, limit // 160]
    assert found["speech_attention_mask"].sum(1).tolist() == [1, 112]


# ---- words


def conversations():
    user = {"role": "user", "content": AUDIO_TEMPLATE}
    listed = {
        "role": "user",
        "content": [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": "And?"}, {"audio": "y"}],
    }
    answer = {"role": "assistant", "content": "Well."}
    return [[user], [{"role": "system", "content": "S"}, user, answer, user], [listed, answer, listed]]


@golden_sets
@pytest.mark.parametrize("messages", conversations())
def test_our_default_template_says_what_the_released_one_says(golden, messages):
    released = FunAudioChatProcessor.from_pretrained(golden / "ckpt")
    assert (golden / "ckpt" / "chat_template.jinja").read_text(encoding="utf-8") == released.chat_template
    parts = released.text_tokenizer, released.speech_tokenizer, released.feature_extractor
    ours = FunAudioChatProcessor(*parts, group_size=released.group_size)
    assert ours.chat_template == DEFAULT_CHAT_TEMPLATE != released.chat_template
    for opened in (True, False):
        text = released.apply_chat_template(messages, add_generation_prompt=opened)
        assert ours.apply_chat_template(messages, add_generation_prompt=opened) == text
        assert ours.decode(ours.apply_chat_template(messages, opened, tokenize=True)) == text
    assert (DEFAULT_SYSTEM_PROMPT in text) == (messages[0]["role"] != "system")


def test_the_literal_prompts():
    assert AUDIO_TEMPLATE == "<|audio_bos|><|AUDIO|><|audio_eos|>"
    assert SPOKEN_S2M_PROMPT.startswith(f"{S2M_PROMPT} 你的名字是小云。")
    assert SPOKEN_S2M_PROMPT.endswith("会说四川话和粤语。")
    assert len(SPOKEN_S2M_PROMPT) == len(S2M_PROMPT) + 1 + 137
    tools = [{"name": "play", "description": "播放 {song}"}, {"name": "stop"}]
    lines = function_calling_prompt(tools).split("\n")
    assert lines[:2] == [S2T_PROMPT, "# Tools"]
    first = lines.index("<tools>")
    assert [json.loads(line) for line in lines[first + 1 : first + 3]] == tools
    assert lines[first + 1] == '{"name": "play", "description": "播放 {song}"}'
    assert lines[-3:] == ["<tool_call>", '{"name": <function-name>, "arguments": <args-json-object>}', "</tool_call>"]


def test_decoding_keeps_or_drops_special_tokens(processor):
    ids = processor(text=["<|im_start|>hi", "<|im_start|>ho"])["input_ids"]
    assert processor.batch_decode(ids) == ["<|im_start|>hi", "<|im_start|>ho"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["hi", "ho"]
    assert processor.tokenizer is processor.text_tokenizer


# ---- files


@golden_sets
def test_a_saved_processor_loads_as_it_was(golden, tmp_path):
    first = FunAudioChatProcessor.from_pretrained(golden / "ckpt")
    first.save_pretrained(tmp_path)
    second = FunAudioChatProcessor.from_pretrained(tmp_path)
    text = f"{AUDIO} it's 12\n{AUDIO_TEMPLATE}"
    audios = [noise(9000), {"token": "[AU0001]" + AUDIO_PAD * 7}]
    assert_equal(dict(second(text=text, audio=audios)), dict(first(text=text, audio=audios)))
    plain = ("chat_template", "group_size", "sample_rate", "audio_token", "audio_pad_token")
    assert [getattr(first, name) for name in plain] == [getattr(second, name) for name in plain]
    for name in ("preprocessor_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text().strip() == (golden / "ckpt" / name).read_text().strip()
    for name in ("tokenizer_config.json", "speech_tokenizer/tokenizer_config.json", "processor_config.json"):
        old, new = (json.loads((folder / name).read_text()) for folder in (golden / "ckpt", tmp_path))
        changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        # transformers 5 keeps added tokens in tokenizer.json alone
        assert changed <= {"added_tokens_decoder", "extra_special_tokens"}, name


def edited(folder, **files):
    """A copy of the golden checkpoint's small files with changes; None removes a file or a key."""
    shutil.copytree(SETS[0] / "ckpt", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    for name, change in files.items():
        file = folder / name.replace("__", "/")
        file = next(file.parent.glob(f"{file.name}.*"), file)
        if change is None:
            file.unlink()
        elif isinstance(change, str):
            file.write_text(change)
        else:
            content = {**json.loads(file.read_text()), **change}
            file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    "named",
    [
        {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "FunAudioChatProcessor"},
        {"tokenizer_class": "Qwen2TokenizerFast"},
        {"tokenizer_class": "FunAudioChatTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizer", "auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}},
        {"tokenizer_class": None, "auto_map": {"AutoProcessor": "evil.Processor"}},
    ],
)
def test_classes_named_in_the_files_do_no_harm(tmp_path, processor, named, caplog):
    folder = edited(
        tmp_path / "x",
        tokenizer_config=named,
        speech_tokenizer__tokenizer_config=named,
        preprocessor_config={"processor_class": "FunAudioChatProcessor"},
    )
    (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    found = FunAudioChatProcessor.from_pretrained(str(folder))
    text = f"a b's{AUDIO_TEMPLATE}\n\n  1234"
    assert_equal(dict(found(text=text, audio=noise(5000))), dict(processor(text=text, audio=noise(5000))))


@pytest.mark.parametrize(
    ("files", "size"),
    [
        (
            {
                "processor_config": {"audio_group_size": 3},
                "speech_tokenizer__tokenizer_config": {"audio_group_size": 3},
            },
            3,
        ),
        ({"processor_config": None, "speech_tokenizer__tokenizer_config": {"audio_group_size": 4}}, 4),
        (
            {
                "processor_config": {"audio_group_size": 2},
                "speech_tokenizer__tokenizer_config": {"audio_group_size": None},
            },
            2,
        ),
        ({"processor_config": None, "speech_tokenizer__tokenizer_config": {"audio_group_size": None}}, 5),
    ],
)
def test_the_group_size_is_read_where_it_stands(tmp_path, files, size):
    processor = FunAudioChatProcessor.from_pretrained(edited(tmp_path / "x", **files))
    assert processor.group_size == size
    found = processor(text=AUDIO_TEMPLATE, audio=noise(7 * 640))
    assert processor.decode(found["input_ids"][0]).count(AUDIO) == -(-7 // size)
    assert found["speech_ids"].shape == (1, -(-7 // size) * size)


def test_without_a_chat_template_the_default_is_taken(tmp_path):
    folder = edited(tmp_path / "a", chat_template=None, tokenizer_config={"chat_template": "{{ 'of the tokenizer' }}"})
    assert FunAudioChatProcessor.from_pretrained(folder).chat_template == DEFAULT_CHAT_TEMPLATE
    (folder / "chat_template.json").write_text('{"chat_template": "older"}')
    assert FunAudioChatProcessor.from_pretrained(folder).chat_template == "older"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"processor_config": {"audio_group_size": 3}},
            "5 in speech_tokenizer/tokenizer_config.json and 3 in processor",
        ),
        ({"processor_config": {"audio_pad_token": "<|hum|>"}}, "speech tokenizer does not know '<|hum|>' as one token"),
        ({"processor_config": {"audio_token": "<|hum|>"}}, "text tokenizer does not know '<|hum|>' as one token"),
        (
            {"processor_config": {"audio_sampling_rate": 8000}},
            "sample_rate is 8000 Hz, the feature extractor hears 16000",
        ),
        ({"processor_config": "{"}, r"processor_config.json cannot be read"),
        ({"processor_config": "[]"}, r"processor_config.json holds a list where a JSON object is due"),
        ({"preprocessor_config": None}, "has no preprocessor_config.json"),
        ({"preprocessor_config": {"chunk_length": "long"}}, "does not describe a Whisper feature extractor"),
        ({"tokenizer_config": None}, "has no tokenizer_config.json"),
        ({"speech_tokenizer__tokenizer": "no json"}, "speech_tokenizer: its tokenizer cannot be loaded"),
    ],
)
def test_unusable_checkpoints_give_one_line(tmp_path, files, message):
    folder = edited(tmp_path / "x", **files)
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")) as caught:
        FunAudioChatProcessor.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_neither_a_folder_nor_a_hub_id(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder, and no hub id that can be fetched"):
        FunAudioChatProcessor.from_pretrained(tmp_path / "nowhere")


def test_group_size_is_checked(processor):
    parts = processor.text_tokenizer, processor.speech_tokenizer, processor.feature_extractor
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        FunAudioChatProcessor(*parts, group_size=0)
