"""What a training step of the adapters costs for FLUX's targets: against wide layers on every token (the baseline).

fedgen's adapters learn from a summary of a clip's tokens, which is taken once; all layers come after it. The baseline
has its wide layers before it pools: each of 1214 tokens goes through ``768 -> hidden -> 768`` and ``768 -> hidden ->
4096``, and the results are averaged to 1 token for CLIP and 17 for T5. How wide its hidden layer was is not on record:
``--hidden`` measures several, by default 512 and that of the target. A step is forward,
loss, backward, clipping and AdamW. fedgen's is measured on summaries, as training does it, and on tokens, which are
summarised in the step. Steps of all take turns; the fastest counts.

    python benchmarks/adapter.py                  # three minutes on one thread
    python benchmarks/adapter.py --batch-size 32 --hidden 512
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from figures import parser, save, show
from torch import Tensor, nn
from torch.nn import functional

from fedgen.data.tokens import summarise
from fedgen.models.adapters import build_adapters
from fedgen.models.settings import AdapterSettings, TrainingSettings
from fedgen.models.training import target_losses

SHAPES: dict[str, tuple[int, ...]] = {"clip": (768,), "t5": (17, 4096)}
FASTER, SMALLER = 20.0, 10.0
CLASSES = 15
BANDS = 12  # of AST at 1214 tokens


class TokenWise(nn.Module):
    """Adapters with a perceptron on every token, and pooling of what comes out.

    Parameters
    ----------
    token_width, hidden : int
    """

    def __init__(self, token_width: int, hidden: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(token_width, hidden), nn.GELU(), nn.Linear(hidden, shape[-1]))
                for name, shape in SHAPES.items()
            }
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Map ``(B, S, D)`` to ``{head: (B, *target shape)}``."""
        outputs = {}
        for name, shape in SHAPES.items():
            wide = self.heads[name](tokens).transpose(1, 2)  # (B, d, S)
            queries = shape[0] if len(shape) == 2 else 1
            outputs[name] = functional.adaptive_avg_pool1d(wide, queries).transpose(1, 2).reshape(-1, *shape)
        return outputs


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (arguments.tokens, arguments.token_width)
    tokens = torch.randn(arguments.batch_size, *shape).to(device)
    own = build_adapters(shape[1], SHAPES, AdapterSettings(), seed=0, bands=BANDS).to(device)
    ways: dict[str, tuple[nn.Module, Tensor]] = {"summaries": (own, summarise(tokens, BANDS)), "tokens": (own, tokens)}
    for hidden in arguments.hidden:
        ways[f"token-wise, {hidden}"] = (TokenWise(shape[1], hidden).to(device), tokens)
    steps = {name: step(model, clips) for name, (model, clips) in ways.items()}
    times = {name: float("inf") for name in ways}
    for _ in range(arguments.repeats + 1):  # the first starts libraries, and is the slowest
        for name, work in steps.items():
            times[name] = min(times[name], work())
    counts = {name: sum(value.numel() for value in model.parameters()) for name, (model, _) in ways.items()}
    rows = [row(name, times, counts, arguments.hidden) for name in ways]
    title = (
        f"a step with {arguments.batch_size} clips of {shape[0]} x {shape[1]}, {arguments.threads} thread(s), {device}"
    )
    show(title, list(rows[0]), [list(found.values()) for found in rows], "targets: 20 times faster, 10 times smaller")
    save(arguments, rows, device=device, targets={"faster": FASTER, "smaller": SMALLER})


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "adapter")
    made.add_argument("--tokens", type=int, default=1214)
    made.add_argument("--token-width", type=int, default=768)
    made.add_argument("--hidden", type=int, nargs="+", default=[512, 4096], help="of the baseline")
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args(words)


def step(model: nn.Module, clips: Tensor) -> Callable[[], float]:
    """Return what does one training step and returns its seconds."""
    settings = TrainingSettings()
    device = next(model.parameters()).device
    targets = {name: torch.randn(CLASSES, *shape, device=device) for name, shape in SHAPES.items()}
    labels = torch.arange(len(clips), device=device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def run() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        losses = target_losses(model(clips), targets, labels, settings)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def row(name: str, times: dict[str, float], counts: dict[str, int], hidden: Sequence[int]) -> dict[str, Any]:
    """Return seconds and parameters, and how many times as many each baseline has."""
    found: dict[str, Any] = {"adapter": name, "parameters": counts[name], "ms a step": 1000 * times[name]}
    for size in hidden:
        other = f"token-wise, {size}"
        known = name not in (f"token-wise, {width}" for width in hidden)
        faster, smaller = times[other] / times[name], counts[other] / counts[name]
        found |= {f"faster than {size}": faster if known else None, f"smaller than {size}": smaller if known else None}
    return found


if __name__ == "__main__":
    main()
