"""Room data: dialogues on disk, layout, packing, data modules. lhotse is imported only when it is used."""

from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn, load_turn_audio, read_cuts, read_dialogues

__all__ = ["Dialogue", "DialogueWriter", "Turn", "load_turn_audio", "read_cuts", "read_dialogues"]
