"""Zero-shot scores of adapters whose outputs are known."""

import pytest
import torch
from torch import Tensor, nn

from fedgen.data.tokens import Summaries
from fedgen.evaluation.zero_shot import mean_scores, zero_shot

CLASSES = ["cow", "dog", "rain"]


class Identity(nn.Module):
    """Gives back the summary for every head, so that the summaries say what is predicted."""

    def __init__(self, scales: dict[str, float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.scales = scales

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        return {name: scale * clips for name, scale in self.scales.items()}


def source(predictions: list[int], labels: list[int]) -> Summaries:
    return Summaries(torch.eye(3)[predictions], torch.tensor(labels))


def test_constructed_case() -> None:
    # cow: 3 of 4 right, dog: 1 of 2, rain: never heard
    clips = source([0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1])
    scores = zero_shot(Identity({"text": 2.0}), clips, {"text": torch.eye(3)}, CLASSES, batch_size=4)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores.per_class == {"cow": 0.75, "dog": 0.5}
    assert scores.confusion == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    # cosine 1 where right and 0 where wrong; squared error (1 + 0 + 0)/3 where right and (4 + 1 + 0)/3 where wrong
    assert scores.heads["text"]["cosine"] == pytest.approx(4 / 6)
    assert scores.heads["text"]["mse"] == pytest.approx((4 * 1 / 3 + 2 * 5 / 3) / 6)


def test_heads_vote_with_the_mean_of_their_cosines() -> None:
    targets = {"sure": torch.eye(3), "unsure": torch.tensor([[0.0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]])}
    # for the summary e0: cosines (1, 0, 0) and (0, 0.6, 0); the mean is nearest to cow
    scores = zero_shot(Identity({"sure": 1.0, "unsure": 1.0}), source([0], [0]), targets, CLASSES)
    assert scores.accuracy == 1.0
    assert scores.heads["unsure"]["cosine"] == pytest.approx(0.0)
    alone = zero_shot(Identity({"unsure": 1.0}), source([0], [0]), {"unsure": targets["unsure"]}, CLASSES)
    assert alone.accuracy == 0.0


def test_targets_of_several_tokens() -> None:
    class Pairs(Identity):
        def forward(self, clips: Tensor) -> dict[str, Tensor]:
            return {"clip": clips[:, None].expand(-1, 2, -1)}

    targets = {"clip": torch.eye(3)[:, None].expand(-1, 2, -1)}
    scores = zero_shot(Pairs({}), source([2, 1], [2, 0]), targets, CLASSES)
    assert scores.confusion == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert scores.heads["clip"]["cosine"] == pytest.approx(0.5)


def test_batch_size_changes_nothing() -> None:
    clips = source([0, 1, 2, 2, 1], [0, 1, 2, 0, 2])
    scores = [zero_shot(Identity({"text": 1.0}), clips, {"text": torch.eye(3)}, CLASSES, n) for n in (1, 2, 64)]
    assert scores[0] == scores[1] == scores[2]


def test_adapters_are_evaluated_without_dropout_and_without_gradients() -> None:
    model = Identity({"text": 1.0}).train()
    zero_shot(model, source([0], [0]), {"text": torch.eye(3)}, CLASSES)
    assert not model.training
    assert model.weight.grad is None


def test_no_clips_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one held-out clip"):
        zero_shot(Identity({"text": 1.0}), source([], []), {"text": torch.eye(3)}, CLASSES)


def test_mean_of_several_models() -> None:
    scores = [
        zero_shot(Identity({"text": 1.0}), source(predicted, [0, 1]), {"text": torch.eye(3)}, CLASSES)
        for predicted in ([0, 1], [0, 0])
    ]
    mean = mean_scores(scores)
    assert mean.accuracy == pytest.approx(0.75)
    assert mean.per_class == {"cow": 1.0, "dog": 0.5}
    assert mean.heads["text"]["cosine"] == pytest.approx(0.75)
    assert mean.confusion == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
