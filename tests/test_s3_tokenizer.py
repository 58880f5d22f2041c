"""S3 tokenizers: the released rules for clips, exact batches, weights in every format, one clear line where one is due.

What needs the package `s3tokenizer` runs where it is installed; torchaudio is never needed.
"""

from __future__ import annotations

import copy
import importlib.util
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fac_lightning.data.codes import tokenizer_fingerprint
from fac_lightning.detokenizers import ToneDetokenizer
from fac_lightning.testing import check_tokenizer
from fac_lightning.tokenizers import S3OnnxTokenizer, S3Tokenizer
from fac_lightning.tokenizers import s3 as room
from fac_lightning.tokenizers.s3_base import LONGEST, NAMES, S3Base
from fac_lightning.tokenizers.s3_mel import S3LogMel
from fac_lightning.weights import CheckpointError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("s3tokenizer") is None,
    reason="s3tokenizer is not installed: pip install --no-deps s3tokenizer einops tqdm",
)


class Recorder(S3Base):
    """Codes from the loudness of the mels; remembers what it was given."""

    def __init__(self, detokenizer: ToneDetokenizer | None = None) -> None:
        super().__init__(detokenizer)
        self.seen: list[int] = []

    def quantize(self, mels: Tensor, lengths: Tensor) -> Tensor:
        self.seen += lengths.tolist()
        loudness = torch.nn.functional.pad(mels.mean(1), (0, -mels.shape[2] % 4)).unflatten(1, (-1, 4)).mean(2)
        return ((loudness + 2) * 1000).long()


def noise(*lengths: int, seed: int = 0) -> Tensor:
    """Noise of changing loudness ``(B, max(lengths))``, zero after each length."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(len(lengths), max(lengths), generator=generator)
    loudness = torch.rand(len(lengths), max(lengths) // 800 + 1, generator=generator).repeat_interleave(800, 1)
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return audio * loudness[:, : max(lengths)] * inside * 0.3


def whisper_mel(audio: Tensor) -> Tensor:
    """The log-mel ``(128, M)`` of one clip ``(S,)`` as Whisper writes it, filters apart."""
    spectrum = torch.stft(audio, 400, 160, window=torch.hann_window(400), return_complex=True)[..., :-1]
    mel = (S3LogMel().filters @ spectrum.abs() ** 2).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8) + 4) / 4


def test_log_mel_of_a_ragged_batch_is_whispers_of_each_clip():
    lengths = [16000, 201, 12345, 4000]
    audio = noise(*lengths)
    audio[:, 8000:] *= 0.01
    mels, frames = S3LogMel()(audio + (audio == 0) * 5.0, torch.tensor(lengths))  # what stands behind is not read
    assert frames.tolist() == [100, 1, 77, 25]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(mels[row, :, : frames[row]], whisper_mel(audio[row, :length]), atol=1e-6, rtol=0)
        assert not mels[row, :, frames[row] :].any()


def test_filters_are_whispers_128():
    whisper = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=128)
    torch.testing.assert_close(S3LogMel().filters, torch.from_numpy(whisper.mel_filters).T.float())


def test_rules_for_clips_keep_the_contract():
    check_tokenizer(Recorder(ToneDetokenizer()))


@pytest.mark.parametrize("samples", [1, 159, 160, 200, 201, 639, 640, 641, 799, 800, 16001, 480000, 480001, 495999])
def test_every_40_ms_begun_have_a_code(samples):
    tokenizer = Recorder()
    encoded = tokenizer.encode(torch.full((1, samples), 0.1))
    assert encoded.lengths.tolist() == [-(-samples // 640)]
    assert encoded.codes[0, :, 0].min() > 0  # the recorder never says 0 itself


@pytest.mark.parametrize(
    ("seconds", "pieces"),
    [
        (0.0, []),
        (30.0, [30.0]),
        (30.5, [15.24, 15.26]),  # released: 15.25; here on a whole code of 40 ms
        (31.0, [30.0, 1.0]),
        (60.0, [30.0, 30.0]),
        (60.96, [30.0, 15.48, 15.48]),
        (91.0, [30.0, 30.0, 30.0, 1.0]),
    ],
)
def test_long_clips_are_cut_as_the_released_scripts_do(seconds, pieces):
    tokenizer, count = Recorder(), round(seconds * 16000)
    encoded = tokenizer.encode(noise(max(count, 640))[:, :count])
    assert sorted(tokenizer.seen) == sorted(round(p * 100) for p in pieces)  # mel frames
    assert encoded.lengths.tolist() == [-(-count // 640)]


def test_pieces_do_not_see_each_other_and_stand_in_order():
    audio = noise(LONGEST + 40000)
    whole = Recorder().encode(audio).codes
    first, second = Recorder().encode(audio[:, :LONGEST]).codes, Recorder().encode(audio[:, LONGEST:]).codes
    assert torch.equal(whole, torch.cat([first, second], 1))


def test_half_precision_around_it_changes_no_code():
    audio = noise(16000)
    expected = Recorder().encode(audio).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Recorder().encode(audio).codes, expected)


# speaking


def test_without_a_detokenizer_decode_says_what_to_name():
    tokenizer = Recorder()
    assert tokenizer.output_rate == 16000
    with pytest.raises(ValueError, match=r"given none: pass Recorder\(detokenizer=\.\.\.\).*CosyVoice3Detokenizer"):
        tokenizer.decode(torch.zeros(1, 2, 1, dtype=torch.long))


@pytest.mark.parametrize(
    "sizes", [{"codebook_size": 100}, {"num_codebooks": 2}, {"hop_length": 480}], ids=["size", "books", "rate"]
)
def test_a_detokenizer_of_other_codes_is_refused(sizes):
    with pytest.raises(ValueError, match="S3 gives 1 x 6561 at 25 Hz"):
        S3Tokenizer(weights=None, detokenizer=ToneDetokenizer(**sizes))


class Version3(ToneDetokenizer):
    codes_name = NAMES["v3"]


def test_codes_of_another_version_are_not_spoken(tmp_path):
    assert S3Tokenizer(weights=None, detokenizer=Version3()).codes_name == NAMES["v3"]
    assert S3Tokenizer(weights=None, detokenizer=ToneDetokenizer()).codes_name is None
    path = write_runnable_onnx(tmp_path / "speech_tokenizer_v2.onnx")
    with pytest.raises(ValueError, match=r"weights .*v2.onnx' make those of speech_tokenizer_v2_25hz: .* other sounds"):
        S3OnnxTokenizer(path, Version3())


def test_without_weights_it_speaks_and_does_not_hear():
    tokenizer = S3Tokenizer(weights=None, detokenizer=ToneDetokenizer())
    assert tokenizer.output_rate == 24000
    codes = torch.randint(6561, (2, 3, 1))
    waves = tokenizer.decode(codes, torch.tensor([3, 1]))
    assert waves.sample_rate == 24000
    assert waves.lengths.tolist() == [3 * 960, 960]
    torch.testing.assert_close(waves.audio, ToneDetokenizer().decode(codes, torch.tensor([3, 1])).audio)
    with pytest.raises(ValueError, match="weights=None and only speaks"):
        tokenizer.encode(torch.zeros(1, 640))


# the package


@pytest.fixture(scope="module")
def package():
    return room._import_package()


@pytest.fixture(scope="module")
def state(package) -> dict[str, Tensor]:
    """A tiny network in the package's true format, whose random codes are spread over the codebook."""
    from s3tokenizer.model_v3 import ModelConfigV3, S3TokenizerV3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = S3TokenizerV3("v3", ModelConfigV3(n_audio_state=128, n_audio_head=2, n_audio_layer=2)).eval()
        mels, lengths = S3LogMel()(noise(64000), torch.tensor([64000]))
        hidden = model.encoder(mels, lengths)[0][0]  # (T, 128)
        spread, mean = torch.std_mean(hidden, 0)
        project = model.quantizer._codebook.project_down
        project.weight.data = torch.randn(8, 128) / spread / 128**0.5
        project.bias.data = -project.weight.data @ mean
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def weights(state, tmp_path) -> str:
    torch.save(state, tmp_path / "tiny.pt")
    return str(tmp_path / "tiny.pt")


@needs_package
def test_s3_keeps_the_contract(weights):
    check_tokenizer(S3Tokenizer(weights, ToneDetokenizer()))


@needs_package
def test_codes_are_the_packages_own(weights, state, package):
    from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2

    # v2 and v3 are one network of different depth, so one class reads both
    model = S3TokenizerV2("v2", ModelConfig(n_audio_state=128, n_audio_head=2, n_audio_layer=2)).eval()
    model.load_state_dict(state)
    tokenizer, seen = S3Tokenizer(weights), set()
    for samples in (640 * 40, 16000 * 3 + 200, 12 * 640 + 639):
        audio = noise(samples, seed=samples)
        theirs, length = model.quantize(*package.padding([package.log_mel_spectrogram(audio[0])]))
        ours = tokenizer.encode(audio).codes
        assert ours.shape == (1, int(length), 1)
        assert torch.equal(ours[..., 0], theirs.long())
        seen |= set(ours.flatten().tolist())
    assert len(seen) > 50


@needs_package
def test_padding_changes_no_code_of_a_ragged_batch(weights):
    tokenizer = S3Tokenizer(weights)
    lengths = torch.tensor([16000 * 4, 16000 * 3 + 77, 9000, 16000 * 2 + 333, 700])
    audio = noise(*lengths.tolist(), seed=3)
    codes = tokenizer.encode(audio, lengths).codes
    for row, length in enumerate(lengths.tolist()):
        alone = tokenizer.encode(audio[row : row + 1, :length]).codes[0]
        assert torch.equal(codes[row, : len(alone)], alone)
        assert not codes[row, len(alone) :].any()


@needs_package
def test_weights_are_read_from_every_format(weights, state, tmp_path):
    expected = S3Tokenizer(weights).encode(noise(8000)).codes
    save_file(state, tmp_path / "tiny.safetensors")
    found = S3Tokenizer(str(tmp_path / "tiny.safetensors"))
    assert torch.equal(found.encode(noise(8000)).codes, expected)
    assert not any(p.requires_grad for p in found.parameters())
    halves = {name: value.half() for name, value in state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    assert all(p.dtype == torch.float32 for p in S3Tokenizer(str(tmp_path / "half.safetensors")).parameters())


def write_released_onnx(state: dict[str, Tensor], path, version: str) -> None:
    """The names by which the package finds weights in the released files, on nodes that need not run."""
    onnx = pytest.importorskip("onnx")
    nodes, tensors = [], []

    def add(name: str, kind: str, key: str, other: str = "", transpose: bool = False) -> None:
        value = state[key].t() if transpose else state[key]
        tensors.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), other or key))
        nodes.append(onnx.helper.make_node(kind, ["x", other or key], [f"out{len(nodes)}"], name=name))

    numbers = iter([2216, 2217, 2218, 2219])  # the exporter's names in v2
    for conv in ("conv1", "conv2"):
        names = {"weight": f"onnx::Conv_{next(numbers)}", "bias": f"onnx::Conv_{next(numbers)}"}
        for leaf, other in names.items():
            key = f"encoder.{conv}.{leaf}"
            if version == "v2":
                add(f"/{conv}/Conv", "Conv", key, other)
            else:
                tensors.append(onnx.numpy_helper.from_array(state[key].numpy(), key))
        if version == "v3":
            inputs = ["x", f"encoder.{conv}.weight", f"encoder.{conv}.bias"]
            nodes.append(onnx.helper.make_node("Conv", inputs, [conv], name=f"/{conv}/Conv"))
    for block in sorted({name.split(".")[2] for name in state if name.startswith("encoder.blocks.")}):
        start = f"encoder.blocks.{block}"
        for part in ("attn.query", "attn.key", "attn.value", "attn.out", "mlp.0", "mlp.2"):
            inside = part.replace("mlp.", "mlp/mlp.").replace("attn.", "attn/")
            add(f"/blocks.{block}/{inside}/MatMul", "MatMul", f"{start}.{part}.weight", transpose=True)
            if f"{start}.{part}.bias" in state:
                add(f"/blocks.{block}/{inside}/Add", "Add", f"{start}.{part}.bias")
        for norm in ("attn_ln", "mlp_ln"):
            name, keys = f"/blocks.{block}/{norm}", [f"{start}.{norm}.weight", f"{start}.{norm}.bias"]
            if version == "v3":
                add(f"{name}/Mul", "Mul", keys[0])
                add(f"{name}/Add_1", "Add", keys[1])
            else:
                tensors.extend(onnx.numpy_helper.from_array(state[key].numpy(), key) for key in keys)
                node = onnx.helper.make_node(
                    "LayerNormalization", ["x", *keys], [name], name=f"{name}/LayerNormalization"
                )
                nodes.append(node)
        fsmn = f"blocks.{block}.attn.fsmn_block.weight"
        add(f"/blocks.{block}/attn/fsmn_block/Conv", "Conv", f"encoder.{fsmn}", fsmn)
    project = "quantizer._codebook.project_down"
    add("/quantizer/project_in/MatMul", "MatMul", f"{project}.weight", "onnx::MatMul_2536", transpose=True)
    add("/quantizer/project_in/Add", "Add", f"{project}.bias", "quantizer.project_in.bias")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "s3", [], [], tensors)), path)


@needs_package
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_weights_are_read_from_the_released_onnx(version, weights, state, tmp_path):
    folder = tmp_path / "v2 and v3"  # only the file's own name counts
    folder.mkdir()
    path = folder / f"speech_tokenizer_{version}.onnx"
    write_released_onnx(state, path, version)
    found = S3Tokenizer(str(path)).model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@needs_package
@pytest.mark.parametrize("name", NAMES.values())
def test_a_name_is_downloaded_by_the_package(name, state, tmp_path, package, monkeypatch):
    asked = []

    def download(wanted: str, folder: str) -> str:
        asked.append((wanted, folder))
        path = tmp_path / f"{wanted}.onnx"
        write_released_onnx(state, path, wanted.split("_")[2])
        return str(path)

    monkeypatch.setattr(package, "_download", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = S3Tokenizer(name, ToneDetokenizer())
    assert tokenizer.encode(noise(1000)).codes.shape == (1, 2, 1)
    assert tokenizer.codes_name == name
    assert asked == [(name, str(tmp_path / "s3tokenizer"))]
    assert name in package._MODELS

    def fail(wanted: str, folder: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(package, "_download", fail)
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(no route to host\).*give its path"):
        S3Tokenizer(name)


@needs_package
def test_unusable_weights_are_named_in_one_line(state, tmp_path):
    def refused(path, match: str) -> None:
        with pytest.raises(CheckpointError, match=match) as caught:
            S3Tokenizer(str(path))
        assert "\n" not in str(caught.value)

    refused("speech_tokenizer_v1", "no such file, and not one of the names speech_tokenizer_v2_25hz")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    refused(tmp_path / "broken.pt", "cannot be read as an S3 tokenizer")
    (tmp_path / "speech_tokenizer_v3.onnx").write_bytes(b"no graph")
    refused(tmp_path / "speech_tokenizer_v3.onnx", "v3.onnx' (cannot be read|are not those)")
    (tmp_path / "renamed.onnx").write_bytes(b"")
    refused(tmp_path / "renamed.onnx", "its name must say v2 or v3")
    torch.save({"model": state}, tmp_path / "nested.pt")
    refused(tmp_path / "nested.pt", "no plain dictionary of tensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "not those of an S3 tokenizer v2 or v3")
    lacking = {name: value for name, value in state.items() if not name.endswith("blocks.1.attn.out.weight")}
    save_file(lacking, tmp_path / "lacking.safetensors")
    refused(tmp_path / "lacking.safetensors", r"2 layers: encoder.blocks.1.attn.out.weight \(1 in all\)")


@needs_package
def test_a_layer_norm_exported_without_bias_has_none(state, tmp_path):
    save_file({k: v for k, v in state.items() if k != "encoder.blocks.0.mlp_ln.bias"}, tmp_path / "x.safetensors")
    assert not S3Tokenizer(str(tmp_path / "x.safetensors")).model.encoder.blocks[0].mlp_ln.bias.any()


@needs_package
def test_a_broken_torchaudio_is_never_touched(weights, tmp_path, monkeypatch):
    (tmp_path / "torchaudio.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("s3tokenizer", "torchaudio")]:
        monkeypatch.delitem(sys.modules, name)
    assert S3Tokenizer(weights).encode(noise(640)).codes.shape == (1, 1, 1)
    assert "torchaudio" not in sys.modules
    with pytest.raises(ImportError, match=r"torchaudio.load: .*import s3tokenizer before"):
        sys.modules["s3tokenizer"].load_audio("clip.wav")


@needs_package
def test_onnx_is_needed_for_onnx_files_only(weights, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else find_spec(name, *a))
    for name in [name for name in sys.modules if name.split(".")[0] in ("s3tokenizer", "onnx")]:
        monkeypatch.delitem(sys.modules, name)
    assert S3Tokenizer(weights).encode(noise(640)).codes.shape == (1, 1, 1)
    (tmp_path / "speech_tokenizer_v3.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r"needs onnx: pip install 'fac-lightning\[s3\]'"):
        S3Tokenizer(str(tmp_path / "speech_tokenizer_v3.onnx"))


def test_an_absent_package_is_named_in_one_line(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "s3tokenizer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "s3tokenizer", None)
    with pytest.raises(ImportError, match=r"needs s3tokenizer 0\.3 or newer .*: pip install 'fac-lightning\[s3\]'"):
        S3Tokenizer()
    assert "torchaudio" not in sys.modules


# onnxruntime


def write_runnable_onnx(path, scale: float = 1000.0, kernel: int = 4) -> str:
    """A graph with the released inputs and output: a code for the mean of every 4 mel frames."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, kinds = onnx.helper.make_node, onnx.TensorProto
    nodes = [
        make("ReduceMean", ["feats"], ["frames"], axes=[1], keepdims=1),
        make("AveragePool", ["frames"], ["pooled"], kernel_shape=[kernel], strides=[kernel], ceil_mode=1),
        make("Mul", ["pooled", "scale"], ["scaled"]),
        make("Abs", ["scaled"], ["positive"]),
        make("Cast", ["positive"], ["indices"], to=kinds.INT32),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "s3",
        [
            onnx.helper.make_tensor_value_info("feats", kinds.FLOAT, [1, 128, "T"]),
            onnx.helper.make_tensor_value_info("feats_length", kinds.INT32, [1]),
        ],
        [onnx.helper.make_tensor_value_info("indices", kinds.INT32, None)],
        [onnx.numpy_helper.from_array(np.array(scale, dtype=np.float32), "scale")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return str(path)


def test_s3_by_onnxruntime_keeps_the_contract(tmp_path):
    check_tokenizer(S3OnnxTokenizer(write_runnable_onnx(tmp_path / "s3.onnx"), ToneDetokenizer()))


def test_onnxruntime_gets_one_whole_clip_at_a_time(tmp_path):
    tokenizer = S3OnnxTokenizer(write_runnable_onnx(tmp_path / "s3.onnx"))
    lengths = [6400, 3333]
    audio = noise(*lengths)
    codes = tokenizer.encode(audio, torch.tensor(lengths)).codes
    for row, length in enumerate(lengths):
        frames = whisper_mel(audio[row, :length]).mean(0)
        means = torch.stack([chunk.mean() for chunk in frames.split(4)])
        torch.testing.assert_close(codes[row, : len(means), 0], (means * 1000).abs().long(), atol=1, rtol=0)


def test_stored_codes_know_their_onnx_file(tmp_path):
    first, second = (S3OnnxTokenizer(write_runnable_onnx(tmp_path / f"{x}.onnx", x)) for x in (900.0, 1000.0))
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(second)
    assert first.codes_name is None
    released = S3OnnxTokenizer(write_runnable_onnx(tmp_path / "speech_tokenizer_v3.onnx"))
    assert released.codes_name == "speech_tokenizer_v3_25hz"
    twin = copy.deepcopy(first)
    assert tokenizer_fingerprint(twin) == tokenizer_fingerprint(first)
    assert torch.equal(twin.encode(noise(2000)).codes, first.encode(noise(2000)).codes)


def test_other_onnx_files_are_named_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="there is no ONNX file"):
        S3OnnxTokenizer(str(tmp_path / "absent.onnx"))
    path = write_runnable_onnx(tmp_path / "50hz.onnx", kernel=2)
    with pytest.raises(CheckpointError, match="gave 50 codes for 100 mel frames"):
        S3OnnxTokenizer(path).encode(noise(16000))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="cannot be opened by onnxruntime"):
        S3OnnxTokenizer(str(tmp_path / "broken.onnx"))
    onnx = pytest.importorskip("onnx")
    same = onnx.helper.make_node("Identity", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([same], "g", info[:1], info[1:]), opset_imports=[onnx.helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "identity.onnx")
    with pytest.raises(CheckpointError, match=r"inputs have \[1\] dimensions, not \[3, 1\]"):
        S3OnnxTokenizer(str(tmp_path / "identity.onnx"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'fac-lightning\[s3-onnx\]'"):
        S3OnnxTokenizer(path)
