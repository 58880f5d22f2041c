"""Room interop: other people's checkpoints, in and out; one package each, such as ``fun_audio_chat``."""
