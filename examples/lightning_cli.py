"""Plain LightningCLI builds the same classes: typed constructors that know nothing of recipes.

It needs `pip install "jsonargparse[signatures]"`. Without arguments it takes a few steps on tones.

    python examples/lightning_cli.py
    python examples/lightning_cli.py fit --config mine.yaml
"""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from fac_lightning.data import SpeechChatDataModule, TextTokenizerTraining
from fac_lightning.tasks import SpeechSFT
from fac_lightning.testing import make_dialogues

CONFIG = """
seed_everything: 1
model:
  model:
    class_path: fac_lightning.models.SpeechLM
    init_args:
      backbone:
        class_path: fac_lightning.backbones.HFBackbone
        init_args:
          pretrained: false
          config: {model_type: qwen3, vocab_size: 400, hidden_size: 32, intermediate_size: 64, head_dim: 16,
            num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, tie_word_embeddings: true}
      encoder: {class_path: fac_lightning.encoders.MelEncoder, init_args: {dim: 16, num_layers: 1}}
      feature_adapter:
        class_path: fac_lightning.adapters.MeanGrouping
        init_args: {in_dim: 16, group_size: 10, dim: 32}
data: {train: tones, val: more_tones, text_tokenizer: text_tokenizer, modes: {S2T: 1.0}, capacity: 128}
trainer: {max_steps: 3, accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false}
"""


class SpeechCLI(LightningCLI):
    """The model tells the data its geometry."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand the built model's geometry to the data module."""
        parser.link_arguments("model.model", "data.geometry", compute_fn=geometry, apply_on="instantiate")


def geometry(model: Any) -> Any:
    """What layout must know of a model."""
    return model.geometry


def demonstration() -> list[str]:
    """Make tones that answer tones, and a configuration that learns them."""
    make_dialogues("tones", 16)
    make_dialogues("more_tones", 4, seed=1)
    TextTokenizerTraining(["tones"], 360, "text_tokenizer").run()
    Path("demonstration.yaml").write_text(CONFIG)
    return ["fit", "--config", "demonstration.yaml"]


cli = SpeechCLI(SpeechSFT, SpeechChatDataModule, args=sys.argv[1:] or demonstration(), save_config_callback=None)
print(f"{type(cli.model).__name__} learned {cli.trainer.global_step} steps from {type(cli.datamodule).__name__}")
