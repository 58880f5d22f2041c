"""EnCodec by its authors' package: the codes of transformers' EnCodec, chunks, files.

Runs where the package ``encodec`` is installed; torchaudio, which it imports, need not be.
"""

import importlib.util
import sys
import warnings

import pytest
import torch
from torch import Tensor

from fac_lightning.testing import check_tokenizer
from fac_lightning.tokenizers import Encodec48kTokenizer, EncodecPackageTokenizer, EncodecTokenizer
from fac_lightning.tokenizers.encodec_package import _import_package
from fac_lightning.weights import CheckpointError

installed = pytest.mark.skipif(
    importlib.util.find_spec("encodec") is None,
    reason="the package encodec is not installed: pip install --no-deps encodec einops",
)
RENAMED = (
    ("coder.model.", "coder.layers."),
    (".convtr.convtr.", ".conv."),
    (".conv.conv.", ".conv."),
    (".conv.norm.", ".norm."),
    (".convtr.norm.", ".norm."),
    ("quantizer.vq.layers.", "quantizer.layers."),
    ("._codebook.", ".codebook."),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under the names of transformers."""
    found = {}
    for name, value in state.items():
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        found[name] = value
    return found


@pytest.fixture(scope="module")
def tokenizer() -> EncodecPackageTokenizer:
    return EncodecPackageTokenizer(None, num_codebooks=4, seed=1)


@pytest.fixture(scope="module")
def twin(tokenizer: EncodecPackageTokenizer) -> EncodecTokenizer:
    """Transformers' EnCodec with the same weights."""
    made = EncodecTokenizer(pretrained=False, num_codebooks=4)
    made.model.load_state_dict(renamed(tokenizer.model.state_dict()))
    return made


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@installed
def test_package_keeps_the_contract(tokenizer):
    check_tokenizer(tokenizer)


@installed
def test_codes_are_those_of_transformers(tokenizer, twin):
    for name in ("sample_rate", "hop_length", "codebook_size", "bandwidth", "padded_from", "first_chunk_frames"):
        assert getattr(tokenizer, name) == getattr(twin, name), name
    audio, samples = noise(3, 30 * 320), torch.tensor([30 * 320, 9 * 320 + 5, 400])
    codes = tokenizer.encode(audio, samples)
    assert torch.equal(codes.codes, twin.encode(audio, samples).codes)
    assert min(len(column.unique()) for column in codes.codes[0].T) > 5
    torch.testing.assert_close(
        tokenizer.decode(codes.codes, codes.lengths).audio, twin.decode(codes.codes, codes.lengths).audio
    )


@installed
def test_codes_are_those_of_the_package_itself(tokenizer):
    audio = noise(1, 1, 20 * 320)
    tokenizer.model.set_target_bandwidth(3.0)  # four codebooks
    ((expected, _),) = tokenizer.model.encode(audio)
    codes = tokenizer.encode(audio[:, 0]).codes
    assert torch.equal(codes, expected.transpose(1, 2))
    torch.testing.assert_close(tokenizer.decode(codes).audio, tokenizer.model.decode([(expected, None)])[:, 0])


@installed
def test_48k_codes_are_those_of_the_package():
    tokenizer = Encodec48kTokenizer(pretrained=False, num_codebooks=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = _import_package().EncodecModel.encodec_model_48khz(pretrained=False)
    state, names = tokenizer.model.state_dict(), list(model.state_dict())
    theirs = {name: state[ours] for name, ours in zip(names, renamed(dict.fromkeys(names)), strict=True)}
    model.load_state_dict(theirs)
    model.set_target_bandwidth(6.0)  # four codebooks
    audio = noise(1, 48000 + 5 * 320) * torch.linspace(0.01, 1, 48000 + 5 * 320)
    with torch.no_grad():
        pieces = [model._encode_frame(piece[:, None].expand(-1, 2, -1)) for piece in audio.split(48000, dim=1)]
    codes = tokenizer.encode(audio).codes
    assert torch.equal(codes[..., 1:], torch.cat([found for found, _ in pieces], dim=2).transpose(1, 2))
    volumes = tokenizer.volume(codes[0, [0, 150], 0])
    scales = torch.cat([scale[0] for _, scale in pieces])
    assert (20 * torch.log10(volumes / scales)).abs().max() < 0.0501


@installed
def test_weights_are_read_from_a_file_of_the_package(tokenizer, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = _import_package().EncodecModel.encodec_model_24khz(pretrained=False)  # with its weight norms
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_()
    state = model.state_dict()
    assert any(name.endswith("weight_g") for name in state)
    path = tmp_path / "encodec_24khz-d7cc33bc.th"
    torch.save(state, path)
    audio = noise(1, 20 * 320)
    model.set_target_bandwidth(3.0)
    with torch.no_grad():
        expected = model.encode(audio[:, None])[0][0].transpose(1, 2)
    assert torch.equal(EncodecPackageTokenizer(str(path), num_codebooks=4).encode(audio).codes, expected)

    asked = []
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda url, **_: (asked.append(url), state)[1])
    assert torch.equal(EncodecPackageTokenizer(num_codebooks=4).encode(audio).codes, expected)
    assert [url.rsplit("/", 1)[1] for url in asked] == [path.name]


@installed
def test_unusable_weights_are_named_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken.th").write_bytes(b"no weights")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.th")
    for name, message in (
        ("none.th", "no such file, and not the name"),
        ("broken.th", "cannot be read"),
        ("other.th", "not those of EnCodec"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            EncodecPackageTokenizer(str(tmp_path / name))
        assert "\n" not in str(caught.value)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(no network\).*give its path"):
        EncodecPackageTokenizer()
    with pytest.raises(ValueError, match="between 1 and 32, got 33"):
        EncodecPackageTokenizer(None, num_codebooks=33)


@installed
def test_a_broken_torchaudio_is_never_touched(tmp_path, monkeypatch):
    (tmp_path / "torchaudio.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("encodec", "torchaudio")]:
        monkeypatch.delitem(sys.modules, name)
    EncodecPackageTokenizer(None)
    assert "torchaudio" not in sys.modules
    with pytest.raises(ImportError, match=r"torchaudio.transforms: .*import encodec before"):
        sys.modules["encodec.utils"].convert_audio(torch.zeros(1, 9), 8000, 24000, 1)


def test_an_absent_package_is_named_in_one_line(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "encodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "encodec", None)
    with pytest.raises(
        ImportError, match=r"EncodecPackageTokenizer needs encodec .*pip install 'fac-lightning\[encodec\]'"
    ):
        EncodecPackageTokenizer(None)
