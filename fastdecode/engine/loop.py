"""The decode loop: all streams of all sequences in one batch, one draw per sequence and step.

A step feeds every row its next id (at first the last of its stream, later the token that its group drew), mixes the
logits of each group's rows, and draws once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from fastdecode.decoder.cuda_graph import MOST_STEPS
from fastdecode.engine.sampler import Sampler
from fastdecode.engine.sequence import Group
from fastdecode.grammar import DONE
from fastdecode.kv.page_pool import PagePool, PoolExhausted
from fastdecode.models.chameleon import Vocabulary


class DecodeLoop:
    """Decodes ``groups`` to their ends. Build, then `run` once.

    ``prompts`` is (batch, length) int64 as the caller gave it; the result has it in front, and ``pad`` behind what
    ended early. ``after_step`` is called with the batch's newest column after every step. ``pool``: where keys and
    values go; None: a pool of its own.
    """

    def __init__(
        self,
        drawer: Sampler,
        vocabulary: Vocabulary,
        groups: Sequence[Group],
        prompts: Tensor,
        pad: int,
        stopping: StoppingCriteriaList | None = None,
        after_step: Callable[[Tensor], None] | None = None,
        pool: PagePool | None = None,
    ) -> None:
        self.drawer, self.decoder, self.grammar = drawer, drawer.decoder, drawer.grammar
        self.vocabulary = vocabulary
        self.groups, self.live = list(groups), list(groups)
        self.stopping: Any = stopping or StoppingCriteriaList()
        self.after_step = after_step
        self.pad, self.width = pad, prompts.shape[1]
        longest = max((g.limit - g.prompt_length for g in groups), default=0)
        self.sequences = torch.full((len(groups), self.width + longest), pad, dtype=torch.long, device="cpu")
        self.sequences[:, : self.width] = prompts
        self.cache = self.decoder.new_cache(pool)
        self.owners: list[Group] = []
        self.inputs: list[int] = []
        self.steps = 0
        self.whole = False

    # --- rows ---------------------------------------------------------------------------------------------------

    def _admit(self, wanted: list[tuple[Group, list[tuple[int, ...]]]]) -> None:
        """Prefill new rows for the given streams, all at once; each stream's last id is left to the next step (unless
        nothing depends on it there: ``whole``).
        """
        streams = [(group, stream) for group, list_of in wanted for stream in list_of]
        if not streams:
            return
        self.cache.pool.expect(self._pages_to_come(wanted))
        rows = self.decoder.prefill(self.cache, [stream if self.whole else stream[:-1] for _, stream in streams])
        for row, (group, stream) in zip(range(rows.start, rows.stop), streams, strict=True):
            group.rows.append(row)
            self.owners.append(group)
            self.inputs.append(stream[-1])

    def _pages_to_come(self, wanted: list[tuple[Group, list[tuple[int, ...]]]]) -> int:
        """At most so many pages will be taken until the pictures that these groups are in are closed."""
        slots = self.cache.pool.page_slots
        pages = 0
        for group, streams in wanted:
            left = min(self.grammar.remaining(group.state), group.limit - len(group.ids))
            pages += sum(-(-(len(stream) + left) // slots) for stream in streams)
            pages += len(group.rows) * (-(-left // slots))
        return pages

    def _release(self, group: Group, keep: int) -> None:
        """Give up all but the first ``keep`` rows of ``group``."""
        while len(group.rows) > keep:
            row = group.rows.pop()
            moved = self.cache.remove(row)
            if moved != row:
                mover = self.owners[moved]
                mover.rows[mover.rows.index(moved)] = row
                self.owners[row], self.inputs[row] = mover, self.inputs[moved]
            self.owners.pop()
            self.inputs.pop()

    def _start(self) -> None:
        """Prefill every stream of every group."""
        self.whole = not self.drawer.recorder.wanted and all(self.grammar.forced[g.state] >= 0 for g in self.live)
        wanted = []
        for group in self.groups:
            others: list[tuple[int, ...]] = []
            if group.tail >= 0 or group.guidance.everywhere:
                others, group.weights = group.plan(self.vocabulary)
            wanted.append((group, [tuple(group.ids), *others]))
        self._admit(wanted)

    # --- one step -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Decode until every group is done; returns (groups, prompt + longest) int64, padded behind.

        However it ends, its pages are free afterwards. ``PoolExhausted`` if the pool has too few.
        """
        try:
            if self.live:
                self._start()
            while self.live:
                unseen = self._steps_unseen()
                if unseen > 1:
                    self._draw_unseen(unseen)
                elif not self._draw_seen_late():
                    self._step()
        except PoolExhausted as error:
            raise PoolExhausted(
                f"{error}, at new token {self.steps} of {len(self.groups)} sequences ({self.cache.rows} streams): give "
                "more pages, or fewer sequences at once"
            ) from None
        finally:
            self.cache.clear()
        return self.sequences[:, : self.width + self.steps]

    def _step(self) -> None:
        """One id for every live group: forced by the grammar, or drawn; then the rows follow."""
        tokens = {g.number: self.grammar.forced[g.state] for g in self.live}
        drawing = [g for g in self.live if tokens[g.number] < 0]
        draws = bool(drawing) or self.drawer.recorder.wanted
        if draws or not (self.whole or self._all_end(tokens)):
            hidden = self.decoder.step(self.cache, torch.tensor(self.inputs, device=self.decoder.device))
            if draws:
                drawn = self.drawer.draw(hidden, drawing, self.sequences[:, : self.width + self.steps])
                tokens |= {g.number: token for g, token in zip(drawing, drawn, strict=True)}
        self.whole = False
        self._follow(tokens)

    def _follow(self, tokens: dict[int, int]) -> None:
        """One id for every live group, by its number, and what follows from it."""
        column = self.width + self.steps
        newest = torch.full((len(self.groups),), -1, device="cpu")
        begun = []
        for number, token in tokens.items():
            group = self.groups[number]
            newest[number] = token
            if self._append(group, token):
                begun.append((group, self._begin_picture(group)))
        self.drawer.note(newest)
        newest[newest < 0] = self.pad
        self.sequences[:, column] = newest
        self.steps += 1
        self._stop(column + 1)
        self._admit([(g, others) for g, others in begun if not g.done])
        if self.after_step is not None:
            self.after_step(newest)

    @property
    def _nobody_asks(self) -> bool:
        """Whether nothing of the caller's comes between two steps."""
        return not self.stopping and not self.whole and self.drawer.plain

    def _steps_unseen(self) -> int:
        """How many steps nobody needs to look at: all live sequences are inside a picture, and no one asks."""
        if not self._nobody_asks or self.grammar.mode == "unrestricted":
            return 0
        steps = MOST_STEPS
        for g in self.live:
            if not self.grammar.in_picture(g.state) or self.grammar.forced[g.state] >= 0:
                return 0
            steps = min(steps, self.grammar.close - g.state, g.limit - len(g.ids))
        return steps

    def _draw_unseen(self, steps: int) -> None:
        """So many ids for every live group, whose places are known before: image ids, one after another."""
        before = self.cache.length(0)
        try:
            drawn = self.drawer.draw_unseen(self.cache, self.live, self.inputs, steps)
        except PoolExhausted:
            self.steps += self.cache.length(0) - before
            raise
        columns = torch.full((steps, len(self.groups)), self.pad, device="cpu")
        columns[:, [g.number for g in self.live]] = torch.tensor(drawn, device="cpu")
        begin = self.width + self.steps
        self.sequences[:, begin : begin + steps] = columns.T
        self.steps += steps
        for group, tokens in zip(self.live, zip(*drawn, strict=True), strict=True):
            group.ids.extend(tokens)
            group.state = DONE if len(group.ids) >= group.limit else group.state + steps
            for row in group.rows:
                self.inputs[row] = tokens[-1]
        self._stop(begin + steps)
        if self.after_step is not None:
            for newest in columns:
                self.after_step(newest)

    def _draw_seen_late(self) -> bool:
        """Steps on a GPU, each begun before the ids of the one before are looked at, until a group ends, or enters or
        leaves a picture. Whether there were any.
        """
        if self.decoder.captured is None or not self._nobody_asks:
            return False
        drawing, before = list(self.live), self.steps
        if any(self.grammar.forced[g.state] >= 0 for g in drawing):
            return False
        steps = min(MOST_STEPS // 2, *(g.limit - len(g.ids) for g in drawing))

        def look(tokens: list[int]) -> bool:
            self._follow({g.number: token for g, token in zip(drawing, tokens, strict=True)})
            return self.live == drawing and all(self.grammar.forced[g.state] < 0 for g in drawing)

        if steps < 2 or not self.drawer.draw_seen_late(self.cache, drawing, self.inputs, steps, look):
            return False
        assert self.steps > before
        return True

    def _all_end(self, tokens: dict[int, int]) -> bool:
        """Whether every live group ends with the token that is forced on it, so that its rows are of no more use."""
        return all(
            tokens[g.number] >= 0
            and (self.grammar.advance(g.state, tokens[g.number]) == DONE or len(g.ids) + 1 >= g.limit)
            for g in self.live
        )

    def _append(self, group: Group, token: int) -> bool:
        """Add ``token`` to ``group``, move its state and feed its rows; whether a picture begins with it."""
        group.ids.append(token)
        for row in group.rows:
            self.inputs[row] = token
        before, group.state = group.state, self.grammar.advance(group.state, token)
        if len(group.ids) >= group.limit:
            group.state = DONE
        if group.done:
            return False
        inside = self.grammar.in_picture(group.state)
        if not inside and self.grammar.in_picture(before):
            group.tail = -1
            if not group.guidance.everywhere:
                self._release(group, 1)
                group.weights = [1.0]
        return inside and (group.tail < 0 or token == self.vocabulary.begin_image)

    def _begin_picture(self, group: Group) -> list[tuple[int, ...]]:
        """The streams to run beside the full one in the picture that begins; their rows are not made yet."""
        group.tail = len(group.ids) - 1
        if group.guidance.everywhere:
            return []
        self._release(group, 1)
        others, group.weights = group.plan(self.vocabulary)
        return others

    def _stop(self, length: int) -> None:
        """Ask the caller's stopping criteria, and give up the rows of groups that are done."""
        if self.stopping:
            scores = self.drawer.recorder.scores
            stop = self.stopping(self.sequences[:, :length], None if scores is None else tuple(scores))
            for group, stops in zip(self.groups, stop.tolist(), strict=True):
                if stops:
                    group.state = DONE
        for group in self.live:
            if group.done:
                self._release(group, 0)
        self.live = [g for g in self.live if not g.done]
