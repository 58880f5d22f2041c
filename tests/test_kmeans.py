"""Units of speech: nearest centroids that are fitted in mini-batches, saved, and spoken by somebody else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fac_lightning.cli import main
from fac_lightning.data import KMeansTraining
from fac_lightning.data.clip_spans import clip_spans
from fac_lightning.detokenizers import ToneDetokenizer
from fac_lightning.encoders import MelEncoder, WhisperEncoder
from fac_lightning.testing import check_tokenizer
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.testing.tiny import FrameEncoder
from fac_lightning.tokenizers import FSQTokenizer, KMeansTokenizer
from fac_lightning.tokenizers.mini_batch_kmeans import MiniBatchKMeans, nearest, spread_out
from fac_lightning.weights import CheckpointError

TINY_WHISPER = {
    "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80,
    "max_source_positions": 60,
}  # fmt: skip
ENCODERS = {
    "frame": FrameEncoder,
    "mel": lambda: MelEncoder(n_mels=20, dim=12, num_layers=1),
    "whisper": lambda: WhisperEncoder(pretrained=False, config=TINY_WHISPER),
}


def blobs(count: int = 6, each: int = 200, dim: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated heaps of frames, shuffled, and their middles."""
    generator = torch.Generator().manual_seed(seed)
    middles = 20 * torch.randn(count, dim, generator=generator)
    frames = (middles[:, None] + 0.1 * torch.randn(count, each, dim, generator=generator)).flatten(0, 1)
    return frames[torch.randperm(len(frames), generator=generator)], middles


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_it_keeps_the_contract_over_any_encoder(make):
    encoder = make()
    voice = ToneDetokenizer(2 * encoder.sample_rate, 2 * encoder.hop_length, 1, 24, high=encoder.sample_rate / 4)
    tokenizer = KMeansTokenizer(encoder, None, 24, voice)
    check_tokenizer(tokenizer)
    assert tokenizer.frame_rate == encoder.frame_rate
    codes = tokenizer.encode(
        torch.randn(1, 40 * encoder.hop_length) * torch.linspace(0.01, 0.5, 40 * encoder.hop_length)
    )
    assert codes.codes.unique().numel() > 3


def test_codes_are_those_of_the_nearest_centroids():
    tokenizer = KMeansTokenizer(FrameEncoder(), None, 30)
    audio, lengths = torch.randn(3, 800), torch.tensor([800, 0, 410])
    features = tokenizer.encoder(audio, lengths).features
    expected = torch.cdist(features, tokenizer.centroids[None]).argmin(2)
    found = tokenizer.encode(audio, lengths)
    assert found.lengths.tolist() == [20, 0, 11]
    for row, count in enumerate(found.lengths.tolist()):
        assert torch.equal(found.codes[row, :count, 0], expected[row, :count])
        assert not found.codes[row, count:].any()


def test_distances_in_pieces_are_distances(monkeypatch):
    frames, centroids = torch.randn(50, 4), torch.randn(7, 4)
    whole = nearest(frames, centroids)
    monkeypatch.setattr("fac_lightning.tokenizers.mini_batch_kmeans.DISTANCES", 20)
    pieces = nearest(frames, centroids)
    best, numbers = torch.cdist(frames, centroids).min(1)
    for found in (whole, pieces):
        assert torch.equal(found[0], numbers)
        torch.testing.assert_close(found[1], best.square())
    assert nearest(frames[:0], centroids)[0].shape == (0,)


def test_first_centroids_lie_in_every_heap_and_too_few_frames_are_refused():
    frames, middles = blobs()
    found = spread_out(frames, 6, torch.Generator().manual_seed(0))
    assert sorted(nearest(found, middles)[0].tolist()) == list(range(6))
    with pytest.raises(ValueError, match="only 2 that differ, too few for 3 centroids"):
        spread_out(torch.tensor([[0.0], [1.0], [0.0]]), 3, torch.Generator())


def test_centroids_become_the_means_of_what_came():
    frames, middles = blobs()
    learner = MiniBatchKMeans(middles + 1.0, torch.Generator().manual_seed(0))
    for batch in frames.split(100):
        learner.update(batch)
    numbers, _ = nearest(frames, middles)
    means = torch.stack([frames[numbers == k].mean(0) for k in range(6)])
    torch.testing.assert_close(learner.centroids, means, rtol=1e-4, atol=1e-3)
    assert learner.counts.tolist() == [200.0] * 6


def test_a_centroid_that_nothing_is_near_to_moves_into_a_heap_of_its_own():
    frames, middles = blobs()
    start = middles.clone()
    start[3] = 1000.0  # nothing is near it, and heap 3 belongs to another
    learner = MiniBatchKMeans(start, torch.Generator().manual_seed(0))
    for batch in frames.split(100) * 3:
        learner.update(batch)
    _, distances = nearest(frames, learner.centroids)
    assert distances.max() < 2
    still = MiniBatchKMeans(start.clone(), torch.Generator().manual_seed(0))
    still.centroids[3] = 1000.0
    for batch in frames.split(100):
        still.update(batch, feed=False)
    assert still.centroids[3].tolist() == [1000.0] * 5


def test_mini_batches_fit_nearly_as_well_as_all_frames_at_once():
    frames = torch.randn(4000, 8) * torch.linspace(0.2, 3, 8)
    learner = MiniBatchKMeans(spread_out(frames[:400], 20, torch.Generator().manual_seed(0)), torch.Generator())
    for _ in range(5):
        for batch in frames[torch.randperm(4000)].split(250):
            learner.update(batch)
    whole = spread_out(frames[:400], 20, torch.Generator().manual_seed(0))
    for _ in range(50):
        numbers, _ = nearest(frames, whole)
        whole = torch.stack([frames[numbers == k].mean(0) for k in range(20)])
    assert nearest(frames, learner.centroids)[1].mean() < 1.06 * nearest(frames, whole)[1].mean()


def fitted(tmp_path, **changes):
    world = make_dialogues(tmp_path / "world", 6, sample_rate=1000)
    arguments = {"source": str(world), "out": str(tmp_path / "out"), "steps": 12, "batch_seconds": 2.0}
    torch.manual_seed(0)
    tokenizer = KMeansTokenizer(FrameEncoder(), None, 8)
    return tokenizer, KMeansTraining(tokenizer, **{**arguments, **changes}).run()


def test_training_writes_centroids_that_fit_the_speech(tmp_path):
    tokenizer, summary = fitted(tmp_path)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["clips"] == 12
    assert summary["explained_variance"] > 0.8
    assert 4 < summary["perplexity"] <= summary["used"] <= summary["centroids"] == 8
    loaded = KMeansTokenizer(tokenizer.encoder, str(tmp_path / "out"), 8)
    audio = torch.randn(2, 400)
    assert torch.equal(loaded.encode(audio).codes, tokenizer.encode(audio).codes)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["kmeans.safetensors", "summary.json"]
    again, _ = fitted(tmp_path, out=str(tmp_path / "again"))
    assert torch.equal(again.centroids, tokenizer.centroids)
    other, _ = fitted(tmp_path, out=str(tmp_path / "other"), seed=1)
    assert not torch.equal(other.centroids, tokenizer.centroids)


def test_training_reads_folders_of_sound_and_cuts_long_files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    for name, seconds in (("a.wav", 0.4), ("deep/b.flac", 9.0)):
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, (int(8000 * seconds), 2)), 8000)
    tokenizer, summary = fitted(tmp_path, source=[str(tmp_path / "a.wav"), str(tmp_path / "deep")], batch_seconds=1.0)
    assert summary["clips"] == 2
    assert summary["hours"] == pytest.approx(9.4 / 3600, abs=1e-3)
    assert tokenizer.centroids.isfinite().all()
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"a\.wav cannot be read"):
        clip_spans(tmp_path / "a.wav")


def test_one_side_of_dialogues_is_enough(tmp_path):
    world = make_dialogues(tmp_path / "world", 4, sample_rate=1000)
    assert [len(clip_spans(world, side)) for side in ("user", "assistant", "both")] == [4, 4, 8]
    with pytest.raises(ValueError, match="no turn of user has audio"):
        clip_spans(make_dialogues(tmp_path / "text", 2, spoken=False), "user")


def test_the_job_runs_as_a_recipe(tmp_path):
    make_dialogues(tmp_path / "world", 6, sample_rate=1000)
    words = [f"job.source={tmp_path / 'world'}", f"job.out={tmp_path / 'out'}", "job.steps=3", "job.batch_seconds=2"]
    words += ["job.tokenizer.encoder=fac_lightning.testing.tiny.FrameEncoder", "job.tokenizer.codebook_size=4"]
    assert main(["run", "recipes/tiny/kmeans.yaml", *words]) == 0
    assert load_file(tmp_path / "out" / "kmeans.safetensors")["centroids"].shape == (4, 8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"side": "mine"}, "side must be one of user, assistant, both"),
        ({"source": "nowhere"}, "does not exist"),
        ({"steps": 1, "batch_seconds": 0.1}, "too few for 8 centroids"),
    ],
)
def test_what_cannot_be_fitted_is_told(tmp_path, changes, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        fitted(tmp_path, **changes)


def test_other_tokenizers_are_not_fitted():
    with pytest.raises(ValueError, match="FSQTokenizer has no centroids to fit"):
        KMeansTraining(FSQTokenizer(weights=None), "x", "y")


def test_wrong_centroids_are_refused_with_the_way_out(tmp_path):
    encoder = FrameEncoder()
    file = KMeansTokenizer(encoder, None, 6).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"another encoder: hop_length 40 \(this one: 20\)"):
        KMeansTokenizer(FrameEncoder(hop_length=20), str(file))
    with pytest.raises(CheckpointError, match=r"dim 8 \(this one: 4\)"):
        KMeansTokenizer(FrameEncoder(dim=4), str(tmp_path))
    with pytest.raises(CheckpointError, match="are 6, and codebook_size says 7"):
        KMeansTokenizer(encoder, str(file), 7)
    with pytest.raises(CheckpointError, match="KMeansTraining"):
        KMeansTokenizer(encoder, str(tmp_path / "none"))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"no file that KMeansTokenizer\.save wrote"):
        KMeansTokenizer(encoder, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="codebook_size must be at least 2, got 1"):
        KMeansTokenizer(encoder, None, 1)


def test_without_a_detokenizer_it_only_encodes_and_a_wrong_one_is_refused():
    with pytest.raises(ValueError, match=r"no decoder of their own .* pass KMeansTokenizer\(detokenizer="):
        KMeansTokenizer(FrameEncoder(), None, 6).decode(torch.zeros(1, 2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="speaks 1 x 6561 codes at 25 Hz, but KMeansTokenizer gives 1 x 6 at 25 Hz"):
        KMeansTokenizer(FrameEncoder(), None, 6, ToneDetokenizer())


def test_random_centroids_are_the_same_in_every_process_and_the_encoder_stays_as_it_is():
    encoder = MelEncoder(n_mels=20, dim=12, num_layers=1)
    first, second = (KMeansTokenizer(encoder, None, 6, seed=3).train() for _ in "ab")
    assert torch.equal(first.centroids, second.centroids)
    assert not encoder.training
    assert not any(weight.requires_grad for weight in encoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        audio = F.pad(torch.randn(1, 16000) * 0.1, (0, 100))
        half = first.encode(audio).codes
    assert torch.equal(half, first.encode(audio).codes)
