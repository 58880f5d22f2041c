"""Import, fine-tune, export: the way of a released checkpoint through the library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from fac_lightning.cli.app import main
from fac_lightning.data import FunAudioChatImport, SpeechChatDataModule
from fac_lightning.data.packing import collate_line
from fac_lightning.interop.fun_audio_chat import compare, load
from fac_lightning.interop.fun_audio_chat.names import places
from fac_lightning.models import SpeechLM
from fac_lightning.replies import GroupEnd
from fun_audio_tiny import tiny_config, write_checkpoint

CODES = 20


def training_lines(folder, spoken_user=True, n=6):
    """Released training JSON with one turn each: a tone asks, codes answer."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(n):
        seconds = 0.5 + 0.11 * i
        audio = (0.3 * np.sin(2 * np.pi * (200 + 40 * i) * np.arange(int(seconds * 16000)) / 16000)).astype(np.float32)
        soundfile.write(folder / f"{i}.wav", audio, 16000)
        codes = rng.integers(0, CODES, 9 + 2 * i)
        said = "<|audio_bos|>" * 10 + "".join(f"[AU{code:04}]" for code in codes)
        heard = {"path": f"{i}.wav", "token": "<|audio_pad|>" * int(len(audio) / 16000 * 25), "text": ""}
        reply = {"path": "", "token": said, "text": "ab" * (1 + i % 3)}
        template = "<|audio_bos|><|AUDIO|><|audio_eos|>"
        user = template if spoken_user else "ccc"
        lines.append(
            {
                "system": "You are asked to generate both text and speech tokens at the same time.",
                "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": template}],
                "audio": [json.dumps(one) for one in ([heard, reply] if spoken_user else [reply])],
            }
        )
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_import_then_20_steps_then_export_changes_the_trained_tensors_alone(tmp_path, capsys, mode):
    released = write_checkpoint(tmp_path / "released", tiny_config(mode=mode))
    data = tmp_path / "dialogues"
    FunAudioChatImport(str(training_lines(tmp_path / "json")), str(data), codebook_size=CODES).run()
    run, tuned, out = tmp_path / "run", tmp_path / "tuned", tmp_path / "out"
    assert main(["import", str(released), "--out", str(run)]) == 0
    fit = ["fit", str(run / "recipe.yaml"), f"data.train={data}", "data.capacity=256", "trainer.max_steps=20"]
    fit += [f"trainer.default_root_dir={tuned}", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    fit += ["task.lr=0.01", "task.min_lr=0.001", "trainer.log_every_n_steps=1", "task.freeze=[backbone.model.layers.0]"]
    assert main(fit) == 0
    losses = [float(row.split(",")[i]) for row, i in _column(tuned / "logs" / "metrics.csv", "train/loss")]
    assert losses[-1] < losses[0]
    assert main(["export", str(tuned), "--out", str(out), "--compare", str(released)]) == 0
    assert load(out).coverage.complete
    changed, everything = set(compare(released, out)), set(load_file(released / "model.safetensors"))
    frozen = {name for name in everything if name.startswith("language_model.model.layers.0.")}
    unused = {"continuous_audio_tower.audio_bos_eos_token.weight"}
    assert changed == everything - frozen - unused
    assert (out / "config.json").read_bytes() == (released / "config.json").read_bytes()


def _column(file, name):
    head, *rows = file.read_text().splitlines()
    place = head.split(",").index(name)
    return [(row, place) for row in rows if row.split(",")[place]]


@pytest.mark.parametrize("group_size", [3, 5])
def test_a_packed_line_has_the_losses_of_the_released_forward(tmp_path, group_size):
    # typed questions, so that the released halving of the users' speech in training has nothing to halve
    chat = load(write_checkpoint(tmp_path / "released", tiny_config(group_size=group_size)))
    file = training_lines(tmp_path / "json", spoken_user=False, n=3)
    FunAudioChatImport(str(file), str(tmp_path / "dialogues"), codebook_size=CODES).run()
    text_tokenizer = tmp_path / "text_tokenizer"
    chat.text_tokenizer.save_pretrained(str(text_tokenizer))
    data = SpeechChatDataModule(
        str(tmp_path / "dialogues"),
        str(text_tokenizer),
        geometry=chat.model.geometry,
        modes={"T2M": 1.0},
        capacity=512,
        reply=GroupEnd(10),
    )
    data.setup("fit")
    rows = [data.train_corpus.row(i, 0, 0) for i in range(3)]
    batch = collate_line(rows, 512, 16000)
    with torch.no_grad():
        packed = chat.model(batch)
        want = [released_losses(chat, line) for line in file.read_text().splitlines()]
    assert packed.text_count == sum(w["text_count"] for w in want)
    assert int(packed.speech_count) == sum(w["speech_count"] for w in want)
    torch.testing.assert_close(packed.text_loss_sum, sum(w["text"] for w in want), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(packed.speech_loss_sum, sum(w["speech"] for w in want), atol=1e-3, rtol=1e-5)


def released_losses(chat, line):
    """Summed losses of one training line by ``FunAudioChat.forward``, its inputs made as the released plugin does."""
    entry = json.loads(line)
    reply = json.loads(entry["audio"][0])
    encode = lambda text: chat.text_tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    k = chat.ids.group_size
    speech = torch.tensor([chat.speech_tokenizer.encode(reply["token"], add_special_tokens=False)])
    audio = "<|audio_bos|>" + "<|AUDIO|>" * (-(-speech.shape[1] // k)) + "<|audio_eos|>"
    prompt = encode(
        f"<|im_start|>system\n{entry['system']}<|im_end|>\n<|im_start|>user\nccc<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = encode(f"{audio}<|im_end|>\n")
    out = chat(
        input_ids=torch.tensor([prompt + answer]),
        labels=torch.tensor([[-100] * len(prompt) + answer]),
        speech_ids=speech,
        text_ids=torch.tensor([encode(reply["text"])]),
    )
    text_count = len(answer)  # every label but the first, which nothing predicts, is shifted by one
    speech_count = speech.shape[1] + k
    return {
        "text": out.text_loss * text_count,
        "speech": out.speech_loss * speech_count,
        "text_count": text_count,
        "speech_count": speech_count,
    }


def test_an_imported_model_is_made_of_ordinary_parts(tmp_path):
    chat = load(write_checkpoint(tmp_path / "released", tiny_config()))
    assert isinstance(chat.model, SpeechLM)
    assert len(places({name: t.shape for name, t in chat.model.state_dict().items()})) == len(chat.coverage.loaded)
