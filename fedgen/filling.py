"""What the server hands each node of the other nodes' samples, so that adapters meet every class in every round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from flwr.app import ConfigRecord, RecordDict

from fedgen.border import Member
from fedgen.exchange.payload import codec_fingerprint, samples_to_record
from fedgen.models.samples import SyntheticTokens
from fedgen.models.seeds import seeded
from fedgen.shared_codec import Ask

DONORS = 4  # nodes whose samples of a class one node gets: it needs all their codecs


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
        self.known: dict[int, set[str]] = defaultdict(set)  # fingerprints of the codecs that each node has, by number

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
        contents, names = {}, {}
        for node_id, member in members.items():
            chosen = self.chosen(member, pool, round_number)
            contents[node_id] = self._content(chosen, self.known[member.number])
            names[member.number] = {str(name) for name in contents[node_id].config_records["codecs"].values()}
        taken = ask(contents, "query.fill", lambda member, reply: None, least)
        for number in names:
            self.known[number] = names[number] if number in taken else set()

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

    @staticmethod
    def _content(chosen: Mapping[int, SyntheticTokens], known: set[str]) -> RecordDict:
        codecs = {f"samples.{number}": codec_fingerprint(samples.codec) for number, samples in chosen.items()}
        content = RecordDict({"codecs": ConfigRecord(dict(codecs))})
        sent = set(known)
        for number, samples in chosen.items():
            content[f"samples.{number}"] = samples_to_record(samples, sent)
            sent.add(codecs[f"samples.{number}"])
        return content
