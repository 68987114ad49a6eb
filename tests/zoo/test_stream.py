"""Streams: every member once over ranks and workers, batches for all, a cursor that resumes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metanet.zoo import Member, Zoo, ZooStream
from small_zoos import member, small, weights

from metanet import ZooError


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """60 members of one architecture in six shards, 9 of another in three, 1 of a third."""
    found = Zoo.create(tmp_path_factory.mktemp("stream") / "zoo")
    for start in range(0, 60, 10):
        found.add([member(i) for i in range(start, start + 10)])
    for start in range(0, 9, 3):
        found.add([Member(f"b{i}", {"lr": 1.0}, weights=weights(i, {"w": (3, 3)}))
                   for i in range(start, start + 3)])
    found.add([Member("lonely", {"lr": 2.0}, weights=weights(0, {"w": (2,)}))])
    return found


def ids(stream: ZooStream) -> list[tuple[str, ...]]:
    return [batch.ids for batch in stream]


@given(world=st.integers(1, 7), size=st.integers(1, 30), seed=st.none() | st.integers(0, 9),
       pool=st.integers(1, 9), epoch=st.integers(0, 3))
def test_every_member_once(zoo: Zoo, world: int, size: int, seed: int | None, pool: int,
                           epoch: int) -> None:
    streams = [zoo.stream(size=size, seed=seed, pool=pool, rank=r, world=world)
               for r in range(world)]
    try:
        plan = streams[0].plan(epoch)
    except ZooError as error:
        assert size == 1 and "evenly" in str(error) and 70 % world
        return
    places = [int(p) for step in plan for part in step for p in part]
    assert sorted(places) == sorted(zoo.query().places.tolist())
    assert all(len(step) == world for step in plan)
    most = max(len(part) for step in plan for part in step)
    assert min(len(part) for step in plan for part in step) >= 1 and most <= max(size, 2)
    for stream in streams[1:]:
        assert [[p.tolist() for p in s] for s in stream.plan(epoch)] == \
            [[p.tolist() for p in s] for s in plan]


def test_batches_hold_what_their_ids_say(zoo: Zoo) -> None:
    seen = {}
    for batch in zoo.stream("lr < 1.5", 8, columns=["config.lr"]):
        assert len(batch) == len(batch.ids) == len(batch.columns["config.lr"])
        for name, row in zip(batch.ids, batch.state_dicts(), strict=True):
            seen[name] = {key: value.clone() for key, value in row.items()}
    assert len(seen) == 69
    assert torch.equal(seen["m017"]["0.weight"], weights(17)["0.weight"])
    assert torch.equal(seen["b4"]["w"], weights(4, {"w": (3, 3)})["w"])


def test_the_order_hangs_on_seed_and_epoch_alone(zoo: Zoo) -> None:
    first, again = zoo.stream(size=7, seed=3), zoo.stream(size=7, seed=3)
    epochs = [ids(first), ids(first), ids(again)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert first.epoch == 2 and again.epoch == 1
    again.set_epoch(1)
    assert ids(again) == epochs[1]
    assert ids(zoo.stream(size=7, seed=4)) != epochs[0]
    plain = zoo.stream("id like 'm%'", 7, seed=None)
    assert [name for batch in plain for name in batch.ids] == [f"m{i:03d}" for i in range(60)]
    assert len(plain) == 9


def test_a_batch_mixes_several_shards(zoo: Zoo) -> None:
    wide = [len({p // (1 << 20) for p in b.selection.places.tolist()})
            for b in zoo.stream("id like 'm%'", 20, pool=6)]
    narrow = [len({p // (1 << 20) for p in b.selection.places.tolist()})
              for b in zoo.stream("id like 'm%'", 10, pool=1)]
    assert min(wide) > 2 and set(narrow) == {1}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_read_the_same_in_the_same_order(zoo: Zoo, workers: int) -> None:
    want = ids(zoo.stream(size=7, seed=1, rank=1, world=2))
    stream = zoo.stream(size=7, seed=1, rank=1, world=2)
    found = []
    for batch in stream.loader(workers):
        found.append(batch.ids)
        if len(found) == 2:
            break
    assert stream.position == 2
    state = stream.state_dict()
    other = zoo.stream(size=7, seed=1, rank=1, world=2)
    other.load_state_dict(state)
    found += [batch.ids for batch in other.loader(workers)]
    assert found == want and (other.epoch, other.position) == (1, 0)


def test_a_cursor_resumes_anywhere(zoo: Zoo) -> None:
    whole = zoo.stream(size=9)
    want = ids(whole) + ids(whole)
    for stop in range(len(want)):
        first = zoo.stream(size=9)
        found = []
        while len(found) < stop:
            for batch in first:
                found.append(batch.ids)
                if len(found) == stop:
                    break
        second = zoo.stream(size=9)
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        while len(found) < len(want):
            found += ids(second)
        assert found == want


def test_a_cursor_of_another_stream_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    state = zoo.stream(size=9, seed=1, rank=0, world=2).state_dict()
    for other in (zoo.stream(size=8, seed=1, rank=0, world=2),
                  zoo.stream(size=9, seed=2, rank=0, world=2),
                  zoo.stream(size=9, seed=1, rank=0, world=3),
                  zoo.stream("lr < 1", 9, seed=1, rank=0, world=2),
                  small(tmp_path / "other", 60).stream(size=9, seed=1, rank=0, world=2)):
        with pytest.raises(ZooError, match="another stream"):
            other.load_state_dict(state)
    zoo.stream(size=9, seed=1, rank=1, world=2).load_state_dict(state)  # ranks share a cursor
    with pytest.raises(ZooError, match="there is none"):
        zoo.stream(size=9, seed=1, rank=1, world=2).load_state_dict({**state, "position": 999})


def test_ranks_come_from_the_environment(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (zoo.stream().rank, zoo.stream().world) == (1, 4)


@pytest.mark.parametrize("options", [{"size": 0}, {"pool": 0}, {"rank": 2, "world": 2},
                                     {"rank": 0}, {"rank": 0, "world": 71}])
def test_bad_streams(zoo: Zoo, options: dict[str, int]) -> None:
    with pytest.raises(ZooError):
        zoo.stream(**options)


def test_a_stream_can_be_pickled(zoo: Zoo) -> None:
    stream = zoo.stream(size=9)
    next(iter(stream))
    other = pickle.loads(pickle.dumps(stream))
    assert ids(other) == ids(stream)
