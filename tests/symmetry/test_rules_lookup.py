"""Tables that are read whole, in part, or row by row; what nothing follows from."""

from __future__ import annotations

import models
import torch
from symmetry_tools import proved, signatures
from torch import Tensor, nn

from metanet.symmetry.infer import infer_program
from metanet.symmetry.verify import verify_program
from metanet.trace.dispatch import dispatch_program

s = models.s
X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


class Ends(nn.Module):
    """Linear(5, 12), something with a table of rows of twelve, Linear to 3."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.a, self.b, self.table = nn.Linear(5, 12), nn.Linear(12, 3), nn.Embedding(rows, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)))

    def middle(self, x: Tensor) -> Tensor:
        return x


class Whole(Ends):
    """Attention to all rows, which are looked up by counting."""

    def middle(self, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(7)[None].expand(x.shape[0], -1))
        return (x @ rows.transpose(1, 2)).softmax(-1) @ rows


def test_a_table_read_by_counting_is_a_matrix() -> None:
    """The seven rows are a set: each is a key and a value of the same attention."""
    space, found = proved(Whole(7), X)
    assert signatures(space) == s(7, 12)
    assert found.ok, found.report()


class Positions(Ends):
    """As many rows as the input has places, summed, so that nothing else holds them."""

    def middle(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1])).tanh().mean(0)


def test_a_table_as_long_as_an_input_may_be_longer_than_another() -> None:
    """Four places, four rows: with fewer places some row would not be read."""
    space, found = proved(Positions(4), X)
    assert signatures(space) == s(12)
    assert found.ok, found.report()
    space, _ = proved(Positions(6), X)
    assert signatures(space) == s(12)


class Behind(Ends):
    """Six rows are mixed, the three behind them are looked up."""

    def __init__(self) -> None:
        super().__init__(9)
        self.choice = nn.Linear(12, 6)

    def middle(self, x: Tensor) -> Tensor:
        shares = self.choice(x).softmax(-1)
        shares = torch.cat([shares, torch.zeros(*shares.shape[:-1], 3)], -1)
        return shares @ self.table.weight + self.table(torch.arange(6, 9)).tanh().mean(0)


def test_rows_before_the_first_number_are_not_looked_up() -> None:
    space, found = proved(Behind(), X)
    assert signatures(space) == s(6, 12, 12)
    assert "looked up by index" in space.explain("table.weight", 0)
    assert found.ok, found.report()


class Sparse(Ends):
    """Each head reads the two places at which it is largest."""

    def middle(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (3, 4)).transpose(1, 2).flatten(0, 1)
        best = heads.square().sum(-1).topk(2, sorted=False)[1]
        read = heads[torch.arange(6)[:, None], best].tanh().sum(1)
        return read.unflatten(0, (2, 3)).flatten(1)


def test_rows_of_a_batch_read_each_at_places_of_its_own() -> None:
    """The axis that is counted through is the axis of heads: what is inside may differ."""
    space, found = proved(Sparse(1), X)
    assert signatures(space) == sorted(s(3) + s(4, over=(3,)) + s(12))
    assert found.ok, found.report()


class Unread(Ends):
    """Features in another order, which nobody asks for."""

    def middle(self, x: Tensor) -> Tensor:
        x[..., torch.tensor([3, 1, 7, 5])].sum()
        return x.tanh()


def test_what_nobody_asks_for_holds_nothing() -> None:
    program = dispatch_program(Unread(1), (X,))
    assert any(op.family == "aten.index" for op in program.ops)
    space = infer_program(program)
    assert (("S", 12, ())) in signatures(space)
    assert "a" in {group.label for group in space.groups if not group.dead}
    found = verify_program(program, space)
    assert found.ok, found.report()


class Written(Ends):
    """The same, written through a view of what is asked for."""

    def middle(self, x: Tensor) -> Tensor:
        y = x.tanh()
        y[..., 2:3].mul_(3)
        return y


def test_what_is_written_through_a_view_holds() -> None:
    program = dispatch_program(Written(1), (X,))
    space = infer_program(program)
    found = verify_program(program, space)
    assert found.max_error <= 1e-12, found.report()


class Stored(Ends):
    """The places at which each head is largest get its mean."""

    def middle(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (3, 4)).transpose(1, 2).flatten(0, 1)
        best = heads.square().sum(-1).topk(2, sorted=False)[1]
        means = heads.tanh().mean(1, keepdim=True).expand(-1, 2, -1)
        heads = heads.index_put([torch.arange(6)[:, None], best], means)
        return heads.unflatten(0, (2, 3)).transpose(1, 2).flatten(2)


def test_rows_of_a_batch_are_written_each_at_places_of_its_own() -> None:
    space, found = proved(Stored(1), X)
    assert [g.size for g in space.groups if g.dead] == [12]  # the table, which nobody reads
    assert signatures(space) == sorted(s(3) + s(4, over=(3,)) + s(12))
    assert found.ok, found.report()


class Prefixed(Ends):
    """Rows before those of the input, whose number Python reads; a mask takes them away again."""

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        before, rows = self.table.weight.shape[0], self.a(x)[: int(count.tolist()[0])]
        rows = torch.cat([self.table.weight, rows])
        rows = (rows @ rows.T).softmax(-1) @ rows
        place = torch.arange(len(rows)) - count + count
        return self.b(rows[place >= before])


def test_a_mask_made_of_values_that_python_reads_is_known() -> None:
    """The seven rows before are a set again: the mask takes the rows behind them, and no others."""
    program = dispatch_program(Prefixed(7), (X[0], torch.tensor([4])))
    space = infer_program(program)
    assert signatures(space) == s(7, 12)
    found = verify_program(program, space)
    assert found.ok, found.report()


class Padded(Ends):
    """Attention to rows of a table before the places, of which a mask hides the last."""

    def middle(self, x: Tensor) -> Tensor:
        rows = torch.cat([self.table.weight[None].expand(len(x), -1, -1), x], 1)
        mask = torch.tensor([0.0, 0.0, 0.0, -1e9])
        mask = nn.functional.pad(mask, (len(self.table.weight), 0))
        return (x @ rows.transpose(1, 2) + mask).softmax(-1) @ rows


def test_what_pads_a_constant_may_move() -> None:
    space, found = proved(Padded(6), X)
    assert signatures(space) == s(6, 12)
    assert found.ok, found.report()


def test_lengths_that_are_filled_up() -> None:
    """Features pass; the lengths are places."""
    class Filled(Ends):
        def middle(self, x: Tensor) -> Tensor:
            return nn.utils.rnn.pad_sequence([x[0, :2], x[1]], batch_first=True).relu()

    program = dispatch_program(Filled(1), (X,))
    space = infer_program(program)
    assert space.meta.unsupported == ()
    assert ("S", 12, ()) in signatures(space)
    assert verify_program(program, space).ok
