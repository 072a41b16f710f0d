"""The next token of rows that are written together: each drawn in its own way by its own luck, or the likeliest."""

from __future__ import annotations

from typing import Any

from shared.recipe import Sampling

WIDTHS = (64, 1024)  # of the likeliest tokens: nearly always enough to draw from by top p
MANY = 8192  # words: of fewer all are sorted at once, unless top k wants a short list
BLOCK = 256  # tokens that are added up together to find where a draw falls


class Picker:
    """A logits processor that draws the next token of sampled rows itself and leaves greedy search no choice.

    A row's draws depend on its seed and the number of the token alone.
    """

    def __init__(self, ways: list[Sampling], prompt: int) -> None:
        self.prompt = prompt
        sampled = [row for row, way in enumerate(ways) if way.temperature > 0]
        whole = [row for row in sampled if not ways[row].top_k and ways[row].top_p == 1]
        cut = [row for row in sampled if row not in whole]
        self.groups = [Drawn(rows, [ways[row] for row in rows]) for rows in (whole, cut) if rows]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores`, [rows, words], with all but the drawn token at minus infinity in sampled rows."""
        step = input_ids.shape[1] - self.prompt
        for group in self.groups:
            every = len(group.rows) == len(scores)
            drawn = group.draw((scores if every else scores[group.rows]).float(), step)
            scores[slice(None) if every else group.rows] = -float("inf")
            scores[group.rows, drawn] = 0.0
        return scores


class Drawn:
    """Rows that are drawn alike: from all tokens, or from the likeliest by top k, then top p."""

    def __init__(self, rows: list[int], ways: list[Sampling]) -> None:
        import torch

        self.rows = rows
        self.temperature = torch.tensor([[way.temperature] for way in ways])
        self.keep = torch.tensor([[way.top_k or 2**31] for way in ways])
        self.top_p = torch.tensor([[way.top_p] for way in ways])
        self.cut = any(way.top_k or way.top_p < 1 for way in ways)
        longest = max(way.max_tokens for way in ways)
        self.luck = torch.stack([luck(way, longest) for way in ways])

    def draw(self, scores: Any, step: int) -> Any:
        """A token for each row of `scores`, [rows, words]."""
        import torch

        shares = torch.softmax(scores / self.temperature.to(scores.device), -1)
        step = min(step, self.luck.shape[1] - 1)  # rows that are done are drawn for as long as others go on
        chance = self.luck[:, step : step + 1].to(scores.device)
        return self.among_likeliest(shares, chance) if self.cut else quantile(shares, chance)

    def among_likeliest(self, shares: Any, chance: Any) -> Any:
        """A token for each row: of those that are left, in as short a list of the likeliest as holds them."""
        import torch

        words = shares.shape[1]
        keep, top_p = self.keep.to(shares.device), self.top_p.to(shares.device)
        drawn = torch.zeros(len(shares), dtype=torch.long, device=shares.device)
        waiting = torch.ones_like(keep, dtype=torch.bool)
        for width in [one for one in WIDTHS if one < words] + [words]:
            every = width == words
            tried = waiting if every or words > MANY else waiting & (keep <= width)
            rows = tried.nonzero()[:, 0]
            if not len(rows):
                continue
            values, tokens = shares[rows].sort(descending=True) if every else torch.topk(shares[rows], width)
            wide = values.sum(-1, keepdim=True) >= top_p[rows]
            enough = every | torch.where(keep[rows] < 2**31, keep[rows] <= width, wide)[:, 0]
            rows, values, tokens = rows[enough], values[enough], tokens[enough]
            chosen = quantile(likeliest(values, keep[rows], top_p[rows]), chance[rows])
            drawn[rows] = tokens.gather(1, chosen[:, None])[:, 0]
            waiting[rows] = False
        return drawn


def likeliest(values: Any, keep: Any, top_p: Any) -> Any:
    """Shares, the likeliest first, [rows, width], with 0 for those that top k or top p leave out."""
    import torch

    values = values.masked_fill(torch.arange(values.shape[1], device=values.device) >= keep, 0.0)
    # top p is a share of what top k has left; of all where it has left all, also of those not listed here
    total = torch.where(keep < 2**31, values.sum(-1, keepdim=True), 1.0)
    # a token stays as long as those before it have not reached top p
    return values.masked_fill(values.cumsum(-1) - values >= top_p * total, 0.0)


def luck(way: Sampling, tokens: int) -> Any:
    """Random numbers from 0 to 1, [tokens], by the seed alone; more of them begin with the same."""
    import torch

    dice = torch.Generator().manual_seed((way.seed or 0) % 2**63)
    return torch.rand(tokens, generator=dice, dtype=torch.float64)


def quantile(shares: Any, chance: Any) -> Any:
    """The place in each row of `shares` at which their sum passes that part of the whole, [rows]: first the block,
    then the place in it.
    """
    from torch.nn.functional import pad

    blocks = pad(shares, (0, -shares.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1).to(chance.dtype).cumsum(-1)
    wanted = chance * sums[:, -1:]
    block = passed(sums, wanted)
    before = pad(sums, (1, 0)).gather(1, block)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].to(chance.dtype).cumsum(-1)
    return (block * BLOCK + passed(inside, wanted - before))[:, 0]


def passed(sums: Any, wanted: Any) -> Any:
    """The first place of each row where the sums are more than is wanted, [rows, 1]; never one that adds nothing."""
    import torch

    below = torch.nextafter(sums[:, -1:], torch.zeros_like(wanted))
    return torch.searchsorted(sums, torch.minimum(wanted, below), right=True)


class Stopper:
    """A stopping criterion: a row is done after an end token or one of its stop texts, or at its own limit.

    `done` says which rows are. Once no more than `fewest` rows go on, all are stopped.
    """

    def __init__(
        self, ways: list[Sampling], prompt: int, tokenizer: Any, ends: set[int], fewest: int = 0
    ) -> None:
        import torch

        self.ways, self.prompt, self.tokenizer, self.fewest = ways, prompt, tokenizer, fewest
        self.limits = torch.tensor([way.max_tokens for way in ways])
        self.ends = torch.tensor(sorted(ends), dtype=torch.long)
        self.listening = [row for row, way in enumerate(ways) if way.stop]
        self.done = torch.zeros(len(ways), dtype=torch.bool)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - transformers calls it so
        """Which rows are done, boolean, [rows]."""
        import torch

        self.done |= input_ids.shape[1] - self.prompt >= self.limits
        self.done |= torch.isin(input_ids[:, -1].cpu(), self.ends)
        for row in self.listening:
            self.done[row] |= self.said(input_ids[row], self.ways[row])
        done = self.done if int((~self.done).sum()) > self.fewest else torch.ones_like(self.done)
        return done.to(input_ids.device)

    def said(self, row: Any, way: Sampling) -> bool:
        """Whether one of the row's stop texts has just been written: a token is at least a byte of it."""
        longest = max(len(stop.encode()) for stop in way.stop)
        text = self.tokenizer.decode(row[self.prompt :][-longest - 4 :])
        return any(stop in text for stop in way.stop)
