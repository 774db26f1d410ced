"""Real clips in a codec of public sounds: class covariances of clips give members away, public ones much less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import audit, fitted

from fedgen.config.compose import load_config
from fedgen.data.datasets import open_dataset
from fedgen.models.public import public_space
from fedgen.models.settings import Lengths
from fedgen.privacy.evidence import Candidates, GaussianFit, Release
from fedgen.task import prepare_store


def halves(root: Path, components: int) -> Candidates:
    """Return the clips of folds 1 to 4 on three nodes, a random half by recording trained on."""
    config = load_config(["experiment=esc10", f"data.root={root}", "encoder.stride=16"])
    store = prepare_store(config)
    rows = np.flatnonzero(store.folds != 5)
    recordings = np.unique([clip.recording for clip in open_dataset(config.data).clips], return_inverse=True)[1][rows]
    half = np.random.RandomState(0).rand(recordings.max() + 1) < 0.5
    codec = public_space(config.encoder, replace(config.codec, components=components), Lengths()).codec
    latents = torch.cat([codec.encode(store.tokens(part).float()) for part in np.array_split(rows, 8)])
    labels = torch.from_numpy(store.labels[rows])
    nodes = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])[labels]
    members, sources = torch.from_numpy(half[recordings]), torch.from_numpy(recordings)
    return Candidates(latents.double(), labels, nodes, members, sources)


@pytest.mark.slow
def test_covariances_of_real_clips_tell(esc10: Path) -> None:
    candidates = halves(esc10, 128)
    releases = []
    for node in range(3):

        def draw(rows: torch.Tensor, seed: int, node: int = node) -> tuple[torch.Tensor, torch.Tensor]:
            own = rows[candidates.nodes[rows] == node]
            return fitted(candidates.latents[own].float(), candidates.labels[own], 128, 0.6, seed)

        releases.append(Release((node,), *draw(candidates.members.nonzero()[:, 0], 0), {}, draw, GaussianFit(0.6)))
    report = audit(candidates, releases, shadows=8)
    assert report is not None
    found = {attack.name: attack.overall.auc for attack in report.attacks}
    assert found["density"] > 0.8
    assert found["likelihood_ratio"] > 0.95
    assert found["posterior"] > 0.95
    assert found["nearest"] < 0.9  # what a distance sees of it
