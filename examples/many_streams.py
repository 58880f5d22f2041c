"""Many streams: three callers talk with one model at once; each hears what it would hear alone.

python examples/many_streams.py
"""

import tempfile

import torch

from fac_lightning.generation import Decoding, Generator, Sampling, SpeechEngine, UserTurn
from fac_lightning.prompts import ChatFormat
from fac_lightning.testing import tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer

QUESTIONS = ["What is red?", "Who barks?", "Which month is first?"]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        chat = ChatFormat(train_text_tokenizer(QUESTIONS, vocab_size=300, folder=folder))
    model = tiny_speech_lm(vocab_size=300).eval()
    lively = Sampling(temperature=1.0, top_k=50)

    # 1. Two slots for three callers: the third waits until one of the others is answered.
    engine = SpeechEngine(model, chat, num_slots=2)
    requests = [
        engine.submit(UserTurn(text=question), "T2M", Decoding(lively, lively, max_positions=8 + 4 * i, seed=i))
        for i, question in enumerate(QUESTIONS)
    ]

    # 2. Every step adds a position to each reply under way: a text token, and a group of codes while speech lasts.
    steps = 0
    while engine.running or engine.waiting:
        said = engine.step()
        steps += 1
        frames = {requests.index(s.request): len(s.chunk.codes) for s in said if s.chunk.reply is None}
        print(f"step {steps:2}: {engine.running} run, {engine.waiting} wait; frames of speech by caller {frames}")

    # 3. What each was told is what it would have been told alone.
    generator = Generator(model, chat)
    for question, request in zip(QUESTIONS, requests, strict=True):
        alone = generator.generate([UserTurn(text=question)], "T2M", request.decoding)[0]
        assert request.reply is not None
        assert request.reply.text_ids == alone.text_ids
        assert torch.equal(request.reply.codes, alone.codes)
    print(f"{steps} steps for {sum(len(request.tokens) for request in requests)} positions")
