"""A checkpoint in bfloat16, as the released one is: talked to as it is stored, trained in float32."""

from __future__ import annotations

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from fac_lightning.cli.app import main
from fac_lightning.cli.build import load_run
from fac_lightning.data import FunAudioChatImport
from fac_lightning.interop.fun_audio_chat import load
from fun_audio_tiny import tiny_config, write_checkpoint
from test_fun_audio_tuning import CODES, training_lines


def test_import_talk_tune_export(tmp_path, capsys):
    released = write_checkpoint(tmp_path / "released", tiny_config(), dtype=torch.bfloat16)
    run, tuned, out = tmp_path / "run", tmp_path / "tuned", tmp_path / "out"
    assert main(["import", str(released), "--out", str(run)]) == 0
    model = load_run(run).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.backbone.model.rotary_emb.inv_freq.dtype == torch.float32
    tone = np.sin(np.arange(8000) / 9).astype(np.float32)
    soundfile.write(tmp_path / "question.wav", tone, 16000)
    ask = ["chat", str(run), "--wav", str(tmp_path / "question.wav"), "--max-positions", "4", "--mode"]
    assert main([*ask, "S2T"]) == 0
    assert main([*ask, "S2M"]) == 0

    data = tmp_path / "dialogues"
    FunAudioChatImport(str(training_lines(tmp_path / "json")), str(data), codebook_size=CODES).run()
    fit = ["fit", str(run / "recipe.yaml"), f"data.train={data}", "data.capacity=256", "trainer.max_steps=2"]
    fit += [f"trainer.default_root_dir={tuned}", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    assert main(fit) == 0
    assert {tensor.dtype for tensor in load_file(tuned / "model.safetensors").values()} == {torch.float32}
    assert main(["export", str(tuned), "--out", str(out)]) == 0
    exported = load(out)
    assert exported.coverage.complete
    assert {parameter.dtype for parameter in exported.parameters()} == {torch.bfloat16}
