"""What the measures look at."""

import torch

from fedgen.data.tokens import TensorTokens
from fedgen.evaluation.features import read_records
from fedgen.models.codec import Codec
from fedgen.models.samples import SyntheticTokens
from fedgen.models.settings import CodecSettings


def test_segments_are_means_of_stretches() -> None:
    tokens = torch.arange(8.0)[None, :, None].expand(3, 8, 2)
    records = read_records(TensorTokens(tokens, torch.tensor([0, 1, 1])), segments=4, batch_size=2)
    assert records.segments[2, :, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    assert records.pooled[0].tolist() == [3.5, 3.5]
    assert records.at(records.labels == 1).flat.shape == (2, 8)


def test_samples_give_what_their_decoded_tokens_give() -> None:
    generator = torch.Generator().manual_seed(0)
    source = TensorTokens(torch.randn(20, 10, 6, generator=generator), torch.arange(20) % 2)
    codec = Codec.fit(source, CodecSettings(channels=4, positions=5, components=8))[0]
    samples = SyntheticTokens(codec, codec.encode_all(source), source.labels, seed=3)
    dense = TensorTokens(samples.to("cpu").batch(torch.arange(20)), source.labels)
    expected = read_records(dense).segments
    assert torch.allclose(read_records(samples.to("cpu")).segments, expected, atol=1e-5)


def test_no_samples() -> None:
    assert len(read_records(TensorTokens(torch.zeros(0, 8, 3), torch.zeros(0)))) == 0
