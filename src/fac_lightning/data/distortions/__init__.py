"""What happens to speech on its way: noise, rooms, clipping, codecs, networks, bands, speed, level; seeded."""

from fac_lightning.data.distortions.band_limit import BandLimit, limit_band
from fac_lightning.data.distortions.base import Distortion, fit_peak, sample_rng
from fac_lightning.data.distortions.clipping import Clipping, clip_peaks
from fac_lightning.data.distortions.colored_noise import ColoredNoise, colored_noise
from fac_lightning.data.distortions.combine import Chain, OneOf, Sometimes
from fac_lightning.data.distortions.compressed_codecs import MP3Codec, OpusCodec, VorbisCodec
from fac_lightning.data.distortions.decaying_reverb import DecayingReverb, decaying_rir
from fac_lightning.data.distortions.file_codec import FileCodec, code_file
from fac_lightning.data.distortions.noise import AdditiveNoise, add_noise
from fac_lightning.data.distortions.packet_loss import PacketLoss, lost_packets
from fac_lightning.data.distortions.reverb import Reverb, convolve_rir
from fac_lightning.data.distortions.speed import Speed
from fac_lightning.data.distortions.telephone_codecs import ALawCodec, GSMCodec, MuLawCodec
from fac_lightning.data.distortions.volume import Volume

__all__ = [
    "ALawCodec",
    "AdditiveNoise",
    "BandLimit",
    "Chain",
    "Clipping",
    "ColoredNoise",
    "DecayingReverb",
    "Distortion",
    "FileCodec",
    "GSMCodec",
    "MP3Codec",
    "MuLawCodec",
    "OneOf",
    "OpusCodec",
    "PacketLoss",
    "Reverb",
    "Sometimes",
    "Speed",
    "Volume",
    "VorbisCodec",
    "add_noise",
    "clip_peaks",
    "code_file",
    "colored_noise",
    "convolve_rir",
    "decaying_rir",
    "fit_peak",
    "limit_band",
    "lost_packets",
    "sample_rng",
]
