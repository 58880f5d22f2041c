"""Small samples of other people's data in their true layouts, and what must come of them."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from fac_lightning.prompts import AUDIO_BOS, AUDIO_PAD, AUDIO_TEMPLATE, S2M_PROMPT

RATE = 16000


@dataclass
class Said:
    """A turn that must come out."""

    role: str
    text: str
    sound: np.ndarray | None = None
    codes: list | None = None
    custom: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sample:
    """A source, and the dialogues in it."""

    source: str
    dialogues: dict[str, list[Said]]
    arguments: dict[str, Any] = field(default_factory=dict)
    modes: dict[str, float] = field(default_factory=lambda: {"S2M": 1.0})
    codes_name: str | None = None
    books: int = 1
    custom: dict[str, Any] = field(default_factory=dict)  # of the first dialogue


def tone(seconds: float, pitch: int, rate: int = RATE) -> np.ndarray:
    """Sound that 16 bits hold exactly."""
    time = np.arange(round(seconds * rate)) / rate
    return (np.round(9000 * np.sin(2 * np.pi * pitch * time)) / 32768).astype(np.float32)


def wav(path: Path, *channels: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Write 16-bit audio and give the first channel back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack(channels, 1), rate, subtype="PCM_16")
    return channels[0]


def flac_bytes(samples: np.ndarray, rate: int = RATE) -> bytes:
    import io

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def heard(i: int) -> np.ndarray:
    return tone(0.4 + 0.1 * i, 200 + 50 * i)


def said(i: int) -> np.ndarray:
    return tone(0.7 + 0.1 * i, 300 + 50 * i)


def codes(i: int, n: int = 12) -> list[int]:
    return [(7 * i + 3 * k) % 64 for k in range(n)]


# ---- one writer a format


def fun_audio_chat(folder: Path) -> Sample:
    records, due = [], {}
    for i in range(3):
        sound = wav(folder / f"wav/{i}.wav", heard(i))
        token = AUDIO_BOS * 10 + "".join(f"[AU{code:04d}]" for code in codes(i))
        entries = [
            {"path": f"wav/{i}.wav", "token": AUDIO_PAD * int(len(sound) / RATE * 25), "text": ""},
            {"path": "", "token": token, "text": f"Answer {i}."},
        ]
        messages = [{"role": role, "content": AUDIO_TEMPLATE} for role in ("user", "assistant")]
        audio = [json.dumps(entry) for entry in entries]
        records.append({"id": f"f{i}", "system": S2M_PROMPT, "messages": messages, "audio": audio})
        due[f"f{i}"] = [Said("user", "", sound), Said("assistant", f"Answer {i}.", codes=[[c] for c in codes(i)])]
    source = lines(folder / "train.jsonl", *records)
    return Sample(str(source), due, {"codebook_size": 64}, codes_name="speech_tokenizer_v3_25hz")


def sharegpt(folder: Path) -> Sample:
    """As LLaMA-Factory's mllm_audio_demo.json, with an answer in speech and dataset_info.json."""
    records, due = [], {}
    for i in range(3):
        question, answer = wav(folder / f"demo/{i}.wav", heard(i)), wav(folder / f"demo/{i}a.wav", said(i))
        messages = [
            {"content": "<audio>What's that sound?", "role": "user"},
            {"content": f"<audio>It is tone {i}.", "role": "assistant"},
            {"content": "Sure?", "role": "user"},
            {"content": "Yes.", "role": "assistant"},
        ]
        records.append({"messages": messages, "audios": [f"demo/{i}.wav", f"demo/{i}a.wav"], "system": "Be brief."})
        due[f"demo-{i}"] = [
            Said("user", "", question),
            Said("user", "What's that sound?"),
            Said("assistant", f"It is tone {i}.", answer),
            Said("user", "Sure?"),
            Said("assistant", "Yes."),
        ]
    (folder / "demo.json").write_text(json.dumps(records))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "audios": "audios", "system": "system"}
    info = {"text_only": {"file_name": "other.json"}, "demo": {"file_name": "demo.json", "formatting": "sharegpt"}}
    info["demo"] |= {"columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return Sample(str(folder), due)


def audio_type() -> pyarrow.DataType:
    return pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def spoken_alpaca(folder: Path) -> Sample:
    """Arrow shards as save_to_disk writes them: a stream, audio as {bytes, path}."""
    rows, due = [], {}
    for i in range(3):
        rows.append(
            {
                "instruction": f"Ask {i}.",
                "input": "",
                "output": f"Answer {i}.",
                "speech_input": f"Ask {i}.",
                "input_speaker": "a",
                "output_speaker": "b",
                "input_audio": {"bytes": flac_bytes(heard(i)), "path": None},
                "output_audio": {"bytes": flac_bytes(said(i), 22050), "path": f"{i}.flac"},
            }
        )
        due[f"train-{i}"] = [Said("user", f"Ask {i}.", heard(i)), Said("assistant", f"Answer {i}.", said(i))]
    types = {name: pyarrow.string() for name in rows[0]} | {"input_audio": audio_type(), "output_audio": audio_type()}
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema(list(types.items())))
    source = folder / "train"
    source.mkdir()
    for k, part in enumerate((table.slice(0, 2), table.slice(2))):
        with pyarrow.ipc.new_stream(source / f"data-{k:05d}-of-00002.arrow", table.schema) as writer:
            writer.write_table(part)
    (source / "state.json").write_text("{}")
    (source / "dataset_info.json").write_text("{}")
    return Sample(str(source), due, custom={"instruction": "Ask 0.", "input_speaker": "a"})


def voice_assistant(folder: Path) -> Sample:
    """Parquet with SNAC's codes as text, a '#' before every seven; a conversation of two rounds, its rows apart."""
    rows, due = [], {}
    for index, number in (("7", 2), ("8", 1), ("7", 1)):
        i = int(index) - 7 + 2 * (number - 1)
        grid = np.array(codes(i, 28)).reshape(4, 7)
        snac = " ".join("# " + " ".join(map(str, frame)) for frame in grid)
        rows.append(
            {
                "split_name": "identity",
                "index": index,
                "round": str(number),
                "question": f"Ask {i}.",
                "question_audio": {"bytes": flac_bytes(heard(i), 22050), "path": f"{i}.wav"},
                "answer": f"Answer {i}.",
                "answer_snac": snac,
            }
        )
        turns = [Said("user", f"Ask {i}.", heard(i)), Said("assistant", f"Answer {i}.", codes=grid.tolist())]
        due[f"identity-{index}"] = turns + due.get(f"identity-{index}", [])
    types = {name: pyarrow.string() for name in rows[0]} | {"question_audio": audio_type()}
    (folder / "data").mkdir()
    file = folder / "data" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(list(types.items()))), file)
    return Sample(str(folder), due, codes_name="snac_24khz", books=7, custom={"split_name": "identity", "index": "7"})


def instruct_s2s(folder: Path) -> Sample:
    """Parquet whose audio is decoded: {array, sampling_rate, path}; the codes stand beside the text."""
    rows, due = [], {}
    for i in range(2):
        rows.append(
            {
                "id": f"s{i}",
                "round": 1,
                "question": f"<USER>: Ask {i}.",
                "question_audio": {"array": heard(i).tolist(), "sampling_rate": RATE, "path": "x.wav"},
                "answer": f"Answer {i}.",
                "speech_token": codes(i),
            }
        )
        turns = [Said("user", f"Ask {i}.", heard(i)), Said("assistant", f"Answer {i}.", codes=[[c] for c in codes(i)])]
        due[f"s{i}"] = turns
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "s2s.parquet")
    return Sample(str(folder / "s2s.parquet"), due, codes_name="speech_tokenizer_v2_25hz")


def slam_omni(folder: Path) -> Sample:
    """SLAM-LLM's JSON lines: rounds with the conversation before in the text; the first of index 3 is missing."""
    answers = {1: "It is water.", 2: "Yes, blue.", 3: "Because."}
    asked = {1: "What is it?", 2: "Blue?", 3: "Why?"}
    rows, due = [], {"identity-2": [], "identity-3-r2": [Said("user", asked[1]), Said("assistant", answers[1])]}
    for index, rounds in ((2, (1, 2, 3)), (3, (2,))):
        for number in rounds:
            before = " ".join(f"USER: {asked[k]} ASSISTANT: {answers[k]}" for k in range(1, number))
            i = index + number
            wav(folder / f"audio/audio_{i}_{number}.wav", heard(number))
            rows.append(
                {
                    "split_name": "identity",
                    "index": index,
                    "round": number,
                    "target_token": codes(i),
                    "source_text": f"{before} <USER>: {asked[number]}".strip(),
                    "source_wav": f"audio/audio_{i}_{number}.wav",
                    "target_text": answers[number],
                }
            )
            due["identity-2" if index == 2 else "identity-3-r2"] += [
                Said("user", asked[number], heard(number)),
                Said("assistant", answers[number], codes=[[c] for c in codes(i)]),
            ]
    source = lines(folder / "slam.jsonl", *rows)
    return Sample(str(source), due, codes_name="speech_tokenizer_v1", custom={"index": 2})


def moshi(folder: Path) -> Sample:
    """Stereo, Moshi on the left; both speakers have words, and the user falls in with the assistant."""
    records, due = [], {}
    for i in range(2):
        left, right = np.zeros(3 * RATE, np.float32), np.zeros(3 * RATE, np.float32)
        right[:RATE] = tone(1.0, 200 + i)
        left[RATE : 2 * RATE] = tone(1.0, 300 + i)
        right[round(1.8 * RATE) : round(2.5 * RATE)] = tone(0.7, 400 + i)
        wav(folder / f"stereo/{i}.wav", left, right)
        alignments = [
            ["Hello", [0.1, 0.4], "SPEAKER_OTHER"],
            ["there.", [0.5, 0.9], "SPEAKER_OTHER"],
            ["Good", [1.1, 1.4], "SPEAKER_MAIN"],
            ["day.", [1.5, 1.9], "SPEAKER_MAIN"],
            ["Fine.", [1.85, 2.4], "SPEAKER_OTHER"],
        ]
        (folder / f"stereo/{i}.json").write_text(json.dumps({"alignments": alignments}))
        records.append({"path": f"stereo/{i}.wav", "duration": 3.0})
        cut = [(0.0, 1.0), (1.0, 2.0), (1.75, 2.5)]
        sides = (right, left, right)
        turns = []
        for (first, last), side, (role, text, words) in zip(
            cut,
            sides,
            [
                ("user", "Hello there.", [["Hello", 0.1, 0.4], ["there.", 0.5, 0.9]]),
                ("assistant", "Good day.", [["Good", 1.1, 1.4], ["day.", 1.5, 1.9]]),
                ("user", "Fine.", [["Fine.", 1.85, 2.4]]),
            ],
            strict=True,
        ):
            piece = side[round(first * RATE) : round(last * RATE)]
            turns.append(Said(role, text, piece, custom={"start": first, "end": last, "words": words}))
        due[f"stereo/{i}"] = turns
    return Sample(str(lines(folder / "data.jsonl", *records)), due, {"gap": 0.5})


def nemo(folder: Path) -> Sample:
    records, due = [], {}
    long = wav(folder / "wav/long.wav", np.concatenate([heard(0), heard(1)]))
    for i, (offset, seconds) in enumerate(((0.0, 0.4), (0.4, 0.5))):
        records.append(
            {"audio_filepath": "wav/long.wav", "duration": seconds, "text": f"word {i}", "offset": offset, "lang": "en"}
        )
        piece = long[round(offset * RATE) : round((offset + seconds) * RATE)]
        due[f"wav/long-{round(offset * 1000):07d}"] = [Said("user", f"word {i}", piece)]
    whole = wav(folder / "wav/whole.wav", heard(2))
    records.append({"audio_filepath": "wav/whole.wav", "duration": len(whole) / RATE, "text": "all", "lang": "en"})
    due["wav/whole"] = [Said("user", "all", whole)]
    return Sample(str(lines(folder / "train.json", *records)), due, modes={"ASR": 1.0}, custom={"lang": "en"})


def nemo_tarred(folder: Path) -> Sample:
    """As convert_to_tarred_audio_dataset writes it: audio_0.tar ..., sharded manifests, pieces as -sub1, -sub2."""
    due: dict[str, list[Said]] = {}
    for shard in range(2):
        data = flac_bytes(np.concatenate([heard(shard), heard(shard + 1)]))
        with tarfile.open(folder / f"audio_{shard}.tar", "w") as tar:
            import io

            for name in (f"rec{shard}.flac", f"one{shard}.flac"):
                content = data if name.startswith("rec") else flac_bytes(heard(3))
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        rows, start = [], 0.0
        for sub, i in ((1, shard), (2, shard + 1)):
            seconds = len(heard(i)) / RATE
            row = {"audio_filepath": f"rec{shard}-sub{sub}.flac", "duration": seconds, "text": f"word {i}"}
            rows.append({**row, "offset": start, "shard_id": shard})
            name = f"rec{shard}-sub{sub}-{round(start * 1000):07d}"
            due[name] = [Said("user", f"word {i}", heard(i))]
            start += seconds
        rows.append({"audio_filepath": f"one{shard}.flac", "duration": 0.7, "text": "one", "shard_id": shard})
        due[f"one{shard}"] = [Said("user", "one", heard(3))]
        lines(folder / "sharded_manifests" / f"manifest_{shard}.json", *rows)
    source = folder / "sharded_manifests" / "manifest__OP_0..1_CL_.json"
    return Sample(str(source), due, modes={"ASR": 1.0})


def kaldi(folder: Path) -> Sample:
    long = wav(folder / "wav/a.wav", np.concatenate([heard(0), heard(1)]))
    (folder / "wav.scp").write_text("rec-a wav/a.wav\n")
    (folder / "segments").write_text("utt-1 rec-a 0.0 0.4\nutt-2 rec-a 0.4 -1\n")
    (folder / "text").write_text("utt-1 first words\nutt-2 zwölf\n", encoding="utf-8")
    (folder / "utt2spk").write_text("utt-1 anna\nutt-2 anna\n")
    (folder / "spk2gender").write_text("anna f\n")
    (folder / "reco2dur").write_text("rec-a 0.9\n")
    known = {"speaker": "anna", "gender": "f"}
    due = {"utt-1": [Said("user", "first words", long[:6400])], "utt-2": [Said("user", "zwölf", long[6400:])]}
    return Sample(str(folder), due, modes={"ASR": 1.0}, custom=known)


def lhotse_duplex(folder: Path) -> Sample:
    """NeMo's duplex cuts: two recordings of equal length, supervisions of user and agent, which overlap."""
    from fac_lightning.data.lhotse_setup import import_lhotse

    lhotse = import_lhotse()
    cuts, due = [], {}
    for i in range(2):
        user, agent = np.zeros(3 * RATE, np.float32), np.zeros(3 * RATE, np.float32)
        user[:RATE], agent[RATE : 2 * RATE], user[2 * RATE :] = tone(1, 200), tone(1, 300), tone(1, 400)
        wav(folder / f"wav/u{i}.wav", user)
        wav(folder / f"wav/a{i}.wav", agent)
        cut = lhotse.Recording.from_file(folder / f"wav/u{i}.wav").to_cut()
        cut.id = f"c{i}"
        turns = (("user", "Hi.", 0.0, 1.0), ("agent", "Hello.", 0.9, 1.1), ("User", "Bye.", 2.0, 1.0))
        cut.supervisions = [
            lhotse.SupervisionSegment(f"c{i}-{k}", cut.recording_id, start, seconds, text=text, speaker=speaker)
            for k, (speaker, text, start, seconds) in enumerate(turns)
        ]
        cut.target_audio = lhotse.Recording.from_file(folder / f"wav/a{i}.wav")
        cuts.append(cut)
        sides = (user, agent, user)
        due[f"c{i}"] = [
            Said(
                "assistant" if speaker == "agent" else "user",
                text,
                side[round(start * RATE) : round((start + seconds) * RATE)],
                custom={"start": start, "end": start + seconds, "speaker": speaker},
            )
            for side, (speaker, text, start, seconds) in zip(sides, turns, strict=True)
        ]
    lhotse.CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return Sample(str(folder / "cuts.jsonl.gz"), due)


def lhotse_shar(folder: Path) -> Sample:
    """A Shar of lhotse's own writer, questions and answers of other lengths: it stamps the question's on the answer."""
    from fac_lightning.data.lhotse_setup import import_lhotse

    lhotse = import_lhotse()
    cuts, due = [], {}
    for i in range(3):
        question, answer = wav(folder / f"wav/q{i}.wav", heard(i)), wav(folder / f"wav/a{i}.wav", said(i))
        cut = lhotse.Recording.from_file(folder / f"wav/q{i}.wav").to_cut()
        cut.id = f"q{i}"
        cut.supervisions = [
            lhotse.SupervisionSegment(f"q{i}-0", cut.recording_id, 0.0, cut.duration, text=f"Ask {i}.", speaker="user")
        ]
        cut.target_audio = lhotse.Recording.from_file(folder / f"wav/a{i}.wav")
        cut.target_audio_unaligned = True
        cut.answer, cut.topic = f"Answer {i}.", "tones"
        cuts.append(cut)
        due[f"q{i}"] = [Said("user", f"Ask {i}.", question), Said("assistant", f"Answer {i}.", answer)]
    (folder / "shar").mkdir()
    fields = {"recording": "flac", "target_audio": "flac"}
    lhotse.CutSet.from_cuts(cuts).to_shar(folder / "shar", fields=fields, shard_size=2)
    return Sample(str(folder / "shar"), due, {"answer_field": "answer"}, custom={"topic": "tones"})


def sounds(folder: Path) -> Sample:
    """Recordings with transcripts, and a dialogue."""
    due = {}
    for i in range(2):
        sound = wav(folder / f"asr/x{i}.wav", heard(i))
        (folder / f"asr/x{i}.txt").write_text(f"word {i}\n")
        due[f"asr/x{i}"] = [Said("user", f"word {i}", sound)]
    asked, answered = wav(folder / "talk-0-user.wav", heard(2)), wav(folder / "talk-1-assistant.flac", said(2))
    (folder / "talk-0-user.txt").write_text("What now?")
    (folder / "talk-1-assistant.txt").write_text("Tea.")
    (folder / "talk-2-user.txt").write_text("Thanks.")
    (folder / "talk-3-assistant.txt").write_text("Any time.")
    (folder / "talk-system.txt").write_text("Be kind.")
    due["talk"] = [
        Said("user", "What now?", asked),
        Said("assistant", "Tea.", answered),
        Said("user", "Thanks."),
        Said("assistant", "Any time."),
    ]
    return Sample(str(folder), due, modes={"S2M": 0.5, "ASR": 0.5})


#: name of the format -> writers of its samples
WRITERS = {
    "fun-audio-chat": [fun_audio_chat],
    "sharegpt": [sharegpt],
    "hf": [spoken_alpaca, voice_assistant, instruct_s2s],
    "slam-omni": [slam_omni],
    "moshi": [moshi],
    "nemo": [nemo, nemo_tarred],
    "kaldi": [kaldi],
    "lhotse": [lhotse_duplex, lhotse_shar],
    "sounds": [sounds],
}
CASES = [(name, writer) for name, writers in WRITERS.items() for writer in writers]
