"""What the server hands each node of the other nodes' samples, so that adapters meet every class in every round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import RecordDict

from fedgen.data.seeds import seeded
from fedgen.messages.checks import Member
from fedgen.messages.samples import samples_to_record
from fedgen.models.samples import SyntheticTokens
from fedgen.server.federation import Ask

DONORS = 4  # nodes whose samples of a class one node gets


class Filling:
    """Fill up the classes of which a node has few clips, or none, with samples of the other nodes.

    Averaged adapters forget the classes that single nodes do not have: each node pulls them towards its own. With some
    samples of all classes beside its clips, every node trains for the same task. Only synthetic samples travel.

    Parameters
    ----------
    wanted : int
        Clips and samples that a node should have of every class.
    seed : int
        Which samples are taken.
    """

    def __init__(self, wanted: int, seed: int) -> None:
        self.wanted, self.seed = wanted, seed

    def give(
        self,
        ask: Ask,
        members: Mapping[int, Member],
        pool: Mapping[int, SyntheticTokens],
        round_number: int,
        least: int,
    ) -> None:
        """Send each of ``members`` (by Flower's node id) what fills its classes up, from everyone's latest samples.

        Raises
        ------
        AggregationError
            Fewer than ``least`` nodes have taken it.
        """
        contents = {}
        for node_id, member in members.items():
            chosen = self.chosen(member, pool, round_number)
            contents[node_id] = RecordDict({f"samples.{n}": samples_to_record(own) for n, own in chosen.items()})
        ask(contents, "query.fill", lambda member, reply: None, least)

    def chosen(
        self, member: Member, pool: Mapping[int, SyntheticTokens], round_number: int
    ) -> dict[int, SyntheticTokens]:
        """Return what ``member`` gets of each other node, by its number: of a class, random samples of a few nodes."""
        others = {n: pool[n] for n in sorted(pool) if n != member.number and len(pool[n])}
        if not others:
            return {}
        labels = torch.cat([samples.labels for samples in others.values()])  # (N,)
        owners = torch.cat([torch.full((len(samples),), number) for number, samples in others.items()])
        order = torch.randperm(len(labels), generator=seeded(self.seed, "fill", round_number, member.number))
        taken = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            holders = owners[labels == label].unique()
            mixed = torch.randperm(len(holders), generator=seeded(self.seed, "donors", member.number, label))
            allowed = (labels == label) & torch.isin(owners, holders[mixed[:DONORS]])
            missing = max(0, self.wanted - member.counts.get(label, 0))
            taken[order[allowed[order]][:missing]] = True
        parts = taken.split([len(samples) for samples in others.values()])
        return {
            number: samples.at(part)
            for (number, samples), part in zip(others.items(), parts, strict=True)
            if part.any()
        }
