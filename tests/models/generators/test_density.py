"""Class Gaussians recover what they were fitted to and keep no sample."""

import pytest
import torch

from fedgen.errors import DataError
from fedgen.models.generators.density import ClassGaussians


def test_a_known_gaussian_is_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.1]])
    mean = torch.tensor([3.0, -1.0, 0.5])
    latents = mean + torch.randn(5000, 3, generator=generator) @ factor.T
    density = ClassGaussians.fit(latents, torch.full((5000,), 7), shrinkage=0.0)
    samples = density.sample(7, 20000, generator)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(samples.T.cov(), factor @ factor.T, atol=0.2, rtol=0.05)


def test_a_class_alone_is_shrunk_towards_its_own_variances() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(5000, 2, generator=generator) @ torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    whole, half, none = (ClassGaussians.fit(latents, torch.zeros(5000), s) for s in (0.0, 0.5, 1.0))
    covariances = [density.of(0)[1] @ density.of(0)[1].T for density in (whole, half, none)]
    for covariance, share in zip(covariances, (1.0, 0.5, 0.0), strict=True):
        torch.testing.assert_close(covariance.diagonal(), latents.var(0))
        torch.testing.assert_close(covariance[0, 1], share * latents.T.cov()[0, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shrinkage", "expected"), [(0.0, (1.0, 9.0)), (1.0, (5.0, 5.0)), (0.5, (3.0, 7.0))])
def test_shrinkage_moves_each_variance_towards_the_tied_one(shrinkage: float, expected: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([torch.randn(20000, 1, generator=generator), 3 * torch.randn(20000, 1, generator=generator)])
    density = ClassGaussians.fit(latents, torch.arange(2).repeat_interleave(20000), shrinkage)
    found = [density.sample(label, 20000, generator).var().item() for label in (0, 1)]
    assert found == pytest.approx(expected, rel=0.05)


def test_small_classes_use_the_tied_covariance() -> None:
    latents = torch.randn(60, 20)
    labels = torch.cat([torch.zeros(53), torch.ones(7)]).long()
    density = ClassGaussians.fit(latents, labels)
    tied = density.of(1)[1]
    own = [(values - values.mean(dim=0)).T @ (values - values.mean(dim=0)) for values in (latents[:53], latents[53:])]
    torch.testing.assert_close(tied @ tied, sum(own) / 58, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(density.of(0)[1], tied, atol=0.01)
    assert len(density.factors) == 2
    assert len(ClassGaussians.fit(latents[:53], labels[:53]).factors) == 1  # the tied one only where it is used


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [0, 0, 1]])
def test_single_clips_still_give_varied_samples(labels: list[int]) -> None:
    latents = torch.randn(len(labels), 4)
    density = ClassGaussians.fit(latents, torch.tensor(labels))
    samples = density.sample(labels[-1], 10, torch.Generator().manual_seed(0))
    assert samples.isfinite().all()
    assert samples.std(0).max() > 1e-3


def test_two_clips_of_two_classes_have_one_coefficient() -> None:
    densities = ClassGaussians.fit(torch.tensor([[1.0], [3.0]]), torch.tensor([4, 7]))
    assert densities.factors.flatten().tolist() == pytest.approx([2**0.5])  # their variance is 2
    assert densities.sample(7, 5, torch.Generator()).shape == (5, 1)


def test_sampling_repeats_with_its_seed_and_state() -> None:
    density = ClassGaussians.fit(torch.randn(50, 4), torch.arange(50) % 3)
    twin = ClassGaussians.from_state(density.state(), size=4)
    draws = [one.sample(1, 5, torch.Generator().manual_seed(3)) for one in (density, density, twin)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_no_row_of_the_state_is_a_sample() -> None:
    latents, labels = torch.randn(40, 6), torch.arange(40) % 2
    density = ClassGaussians.fit(latents, labels)
    centred = latents - density.means[labels]
    rows = torch.cat([density.means, density.factors.flatten(0, 1), density.factors.mT.flatten(0, 1)])
    for real in (latents, centred):
        cosine = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(real).T
        assert torch.cdist(rows, real).min() > 0.1
        assert cosine.max() < 0.999


def test_unknown_classes_and_bad_states_are_errors() -> None:
    density = ClassGaussians.fit(torch.randn(10, 4), torch.arange(10) % 2)
    with pytest.raises(DataError, match=r"class 5.*\[0, 1\]"):
        density.sample(5, 1, torch.Generator())
    with pytest.raises(DataError, match=r"factors is \(1, 4, 4\), expected shape \(1, 3, 3\)"):
        ClassGaussians.from_state(density.state(), size=3)
    with pytest.raises(DataError, match="factor_of is missing"):
        ClassGaussians.from_state({"classes": torch.zeros(1), "means": torch.zeros(1, 4)}, size=4)
