"""Splits, scores, intervals, the flag and the training loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from predict_zoos import task, zoo
from scipy.stats import kendalltau

from metanet.errors import MetanetError, ZooError
from metanet.tasks.predict import MetanetClassifier, MetanetRegressor, metrics
from metanet.tasks.predict.bench import Stage, fill, fit_path, results
from metanet.tasks.predict.data import (
    ACCURACY,
    LABEL,
    Cut,
    Goal,
    Task,
    as_files,
    elsewhere,
    load,
    load_folds,
)
from metanet.tasks.predict.images import answers
from metanet.tasks.predict.loop import Plan, train
from metanet.tasks.predict.rows import ROWS, Budget, Fitted, Row, neural
from metanet.tasks.predict.rows.base import Setting
from metanet.tasks.predict.table import Scored, summarise
from metanet.tasks.predict.trust import Familiar, Interval, scaled, shuffled

BUDGET = Budget(epochs=2, width=4, batch_size=8)


# ------------------------------------------------------------ data


def test_parts_share_nothing_and_hold_last_checkpoints() -> None:
    found = task("net")
    ids = [i for part in found.parts.values() for i in part.ids]
    assert len(ids) == len(set(ids)) and not any("@" in i for i in ids)
    assert sum(map(len, found.parts.values())) + sum(
        found.census[k] for k in ("diverged", "chance")) == found.census["members"]
    assert not {h for h in found.hyper if h.split("=")[0] in ("seed", "run", "family")}


def test_a_second_zoo_is_only_tested_on() -> None:
    found = task("mixed")
    part, census = elsewhere(zoo("net"), found)
    assert len(part) == census["members"] - census["diverged"] - census["chance"]
    assert part.context.tolist() == [[1.0 if kind == "relu" else 0.0 for kind in found.kinds]
                                     ] * len(part)
    hyper = dict(zip(found.hyper, part.hyper.T, strict=True))
    assert np.isnan(hyper["activation=relu"]).all()  # that zoo does not vary it
    assert np.isfinite(hyper["steps"]).all()
    asked = answers(part, found, 50)
    small = {**part.recipe, "data": {"name": "digits", "side": 28}}
    assert np.abs(answers(replace(part, recipe=small), found, 50) - asked).max() > 0.01
    assert np.array_equal(answers(part, replace(found, recipe=small), 50), asked)
    with pytest.raises(ZooError, match="another architecture"):
        elsewhere(zoo("inr"), replace(found, goal=LABEL))


def test_seeds_of_another_setting_are_fitted_again(tmp_path: Path) -> None:
    stage = Stage("net, y, iid", (task("net"),), {}, {})
    seen: list[tuple[int, int]] = []

    def fit(found: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
        seen.append((setting["use"], seed))
        return ROWS["mean"].fit(found, budget, {}, seed)

    for use in (0, 1, 1):
        one = Row("spy", "spy", "-", fit, ({"use": use},))
        fill(one, stage, replace(BUDGET, trials=1, seeds=2), tmp_path, lambda line: None)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]
    path = fit_path(tmp_path, stage, "spy", "seed-1")
    path.write_text(path.read_text().replace('"use": 1', '"use": 0'))
    found = results(stage, one, tmp_path)
    assert found is not None and [fit["seed"] for fit in found] == [0]


def test_files_do_not_name_their_activation() -> None:
    found = as_files(task("mixed"))
    context = torch.cat([part.context for part in found.parts.values()])
    assert set(context.flatten().tolist()) == {0.5} and context.shape[1] == len(found.kinds) == 2
    assert as_files(task("net")).parts["test"].context.shape[1] == 0


def test_views_of_an_image_stay_together() -> None:
    found = task("inr")
    images = [set(part.info["config.image"].tolist()) for part in found.parts.values()]
    assert sum(map(len, images)) == len(set().union(*images))
    assert zoo("inr").query()["split"].tolist() == [None] * len(zoo("inr")), "the zoo is only read"


def test_folds_test_every_member_once() -> None:
    whole = zoo("inr")
    tasks = load_folds(whole, LABEL, Cut("iid", "image", folds=5))
    assert len(tasks) == 5
    tested = [i for found in tasks for i in found.parts["test"].ids]
    assert len(tested) == len(set(tested)) == tasks[0].census["members"]
    for found in tasks:
        ids = [i for part in found.parts.values() for i in part.ids]
        assert len(ids) == len(set(ids)) == len(tested)
        images = [set(part.info["config.image"].tolist()) for part in found.parts.values()]
        assert sum(map(len, images)) == len(set().union(*images))
    first = load(whole, LABEL, Cut("iid", "image", folds=5))
    assert first.parts["test"].ids == tasks[0].parts["test"].ids


@pytest.mark.parametrize("link", ["identity", "log", "logit"])
def test_links_go_there_and_back(link: str) -> None:
    goal = Goal("metrics.test_accuracy", link=link)
    y = np.array([0.01, 0.5, 0.9, 0.99])
    assert np.allclose(goal.back(goal.forward(y)), y)
    assert (np.diff(goal.forward(y)) > 0).all()


def test_held_out_activation() -> None:
    found = load(zoo("mixed"), ACCURACY, Cut("activation", "column", "config.activation",
                                             ("tanh",)))
    assert set(found.parts["test"].info["config.activation"]) == {"tanh"}
    assert set(found.parts["train"].info["config.activation"]) == {"relu"}
    assert found.parts["train"].context.shape[1] == 2


def test_band_is_held_out() -> None:
    found = load(zoo("net"), ACCURACY, Cut("band", "band", "config.lr", (0.015, 0.03)))
    assert (found.parts["test"].info["config.lr"] >= 0.015).all()
    assert (found.parts["train"].info["config.lr"] < 0.015).all()


def test_unknown_column_and_small_zoo() -> None:
    with pytest.raises(ZooError, match=r"has no column metrics\.nothing"):
        load(zoo("net"), Goal("metrics.nothing"))
    with pytest.raises(ZooError, match="members"):
        load(zoo("net"), ACCURACY, limit=4)


# ------------------------------------------------------------ scores


def test_tau_is_scipys_within_each_stratum() -> None:
    rng = np.random.default_rng(0)
    found, true = rng.normal(size=60).round(1), rng.normal(size=60).round(1)
    strata = np.repeat(["a", "b"], [20, 40])
    parts = [kendalltau(found[s], true[s]).statistic for s in (slice(0, 20), slice(20, 60))]
    assert metrics.tau(found, true, strata) == pytest.approx((parts[0] + 2 * parts[1]) / 3)
    ones = metrics._leads(found, true, strata, np.ones((1, 60)))
    assert ones[0] == pytest.approx(metrics.tau(found, true, strata))
    counts = np.random.default_rng(1).multinomial(20, np.ones(20) / 20, size=3).astype(float)
    for row in counts:
        drawn = np.repeat(np.arange(20), row.astype(int))
        assert metrics._leads(found[:20], true[:20], strata[:20], row[None])[0] == pytest.approx(
            kendalltau(found[drawn], true[drawn]).statistic)


def test_strata_are_not_compared() -> None:
    true = np.array([0.1, 0.2, 0.8, 0.9])
    strata = np.array(["a", "a", "b", "b"])
    backwards = np.array([0.2, 0.1, 0.9, 0.8])
    assert metrics.tau(backwards, true, strata) == -1
    assert metrics.tau(backwards, true) > 0


def test_holm_and_auroc() -> None:
    assert metrics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06})
    assert metrics.auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)


def test_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=80)
    good, bad = true + 0.3 * rng.normal(size=80), rng.normal(size=80)
    strata = np.zeros(80)
    test = metrics.difference([good], [bad], true, strata)
    assert test.low > 0 and test.above > 0.99 and test.p < 0.02
    same = metrics.difference([good], [good], true, strata)
    assert same.value == same.low == same.high == 0 and same.p == 1 and same.above == 0.5
    repos = np.repeat(np.arange(8), 10)
    wide = metrics.difference([good], [bad], true, strata, clusters=repos)
    assert wide.high - wide.low > test.high - test.low  # fewer independent members


def test_ceiling_falls_with_noise() -> None:
    true = np.linspace(0.9, 0.99, 50)
    ceilings = [metrics.ceiling(true, n, np.zeros(50)) for n in (100, 10_000)]
    assert ceilings[0] < ceilings[1] <= 1


def fits(predictions: list[np.ndarray]) -> list[dict[str, object]]:  # type: ignore[type-arg]
    """What a suite knows of a row after training, one entry per seed."""
    return [{"predictions": {"iid": p.tolist()}, "coverage": {"iid": 0.9}, "interval": {"width": 1},
             "trials": 2, "seconds": 1.0, "memory": 1, "parameters": 3, "setting": {}}
            for p in predictions]


def test_folds_are_compared_together_and_ranked_apart() -> None:
    rng = np.random.default_rng(0)
    targets = [rng.normal(size=30), 100 + rng.normal(size=30)]
    folds = [Scored(y, np.full(30, "a")) for y in targets]
    done = {"statistics": fits([rng.normal(size=30) for _ in targets]),
            "gmn": fits([y + 0.2 * rng.normal(size=30) for y in targets])}
    rows = {r["model"]: r for r in summarise("s", task("net"), {"iid": folds}, done)}
    gmn, statistics = rows["gmn"], rows["statistics"]
    assert gmn["n"] == 60 and gmn["folds"] == 2 and gmn["low"] < gmn["mean"] < gmn["high"]
    each = [kendalltau(np.array(f["predictions"]["iid"]), y).statistic
            for f, y in zip(done["gmn"], targets, strict=True)]
    assert gmn["mean"] == pytest.approx(np.mean(each))
    assert abs(statistics["mean"]) < 0.3, "the folds' own levels must not count as ranks"
    test = gmn["against_statistics"]
    assert test["low"] > 0
    assert test["difference"] == pytest.approx(gmn["mean"] - statistics["mean"])


# ------------------------------------------------------------ trust


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        errors = np.abs(rng.normal(size=60))
        covered.append(np.mean(errors[:30] <= Interval.of(errors[30:], 0.8).width))
    assert 0.78 < np.mean(covered) < 0.86
    assert Interval.of(np.ones(5), 0.9).width == float("inf")  # five members promise nothing


def test_flag_sees_strangers() -> None:
    found = task("net").parts
    flag = Familiar.fit(found["train"].batch, found["calib"].batch)
    inside = flag.distance(found["val"].batch)
    for strange in (shuffled(found["val"].batch), scaled(found["val"].batch, 2.0)):
        assert metrics.auroc(inside, flag.distance(strange)) > 0.7
    again = Familiar.from_arrays(flag.to_arrays())
    assert np.allclose(again.distance(found["val"].batch), inside)


# ------------------------------------------------------------ the loop


def reader(seed: int = 0) -> tuple[torch.nn.Module, list[object]]:
    found = task("inr")
    torch.manual_seed(seed)
    net = ROWS["gmn"].make(found, BUDGET, {"lr": 1e-3, "dropout": 0.2})
    return net, [neural.examples(found, found.parts[p], 0.0, 1.0) for p in ("train", "val")]


def test_resume_is_exact(tmp_path: Path) -> None:
    plan = Plan(epochs=4, batch_size=8, patience=None)
    whole, examples = reader()
    done = train(whole, *examples, plan)
    for epoch in range(4):  # a new process each time: another net, other random numbers
        parts, _ = reader(epoch)
        torch.manual_seed(99 + epoch)
        last = train(parts, *examples, plan, tmp_path, stop_after=1)
    last = train(parts, *examples, plan, tmp_path)
    assert [p["train"] for p in last.curve] == [p["train"] for p in done.curve]
    assert [p["val"] for p in last.curve] == [p["val"] for p in done.curve]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [p["epoch"] for p in logged] == [0, 1, 2, 3]
    with pytest.raises(MetanetError, match="another training plan"):
        train(reader()[0], *examples, Plan(epochs=5), tmp_path)


def test_early_stopping_keeps_the_best_epoch() -> None:
    net, examples = reader()
    done = train(net, *examples, Plan(epochs=30, batch_size=8, patience=1, lr=0.05, ema=0.0))
    held = [p["val"] for p in done.curve]
    assert done.best_epoch == int(np.argmin(held)) and len(held) <= done.best_epoch + 2
    net.eval()
    from metanet.tasks.predict.loop import loss_of

    with torch.no_grad():
        now = loss_of(net(examples[1].batch, examples[1].context), examples[1].y)
    assert float(now) == pytest.approx(min(held), rel=1e-4)


def test_accumulated_gradients_are_those_of_one_batch() -> None:
    found = []
    for options in ({"batch_size": 8}, {"batch_size": 4, "accumulate": 2}):
        torch.manual_seed(0)
        task_ = task("inr")
        net = ROWS["gmn"].make(task_, BUDGET, {"lr": 1e-3, "dropout": 0.0})
        net.augment = torch.nn.ModuleList()
        examples = [neural.examples(task_, task_.parts[p], 0.0, 1.0) for p in ("train", "val")]
        found.append(train(net, *examples, Plan(epochs=1, **options)).curve[0]["val"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# ------------------------------------------------------------ estimators


def test_regressor() -> None:
    model = MetanetRegressor("statistics").fit(zoo("net"), "test_accuracy")
    batch = task("net").parts["test"].batch
    assert model.predict(batch).shape == (len(batch),)
    state = batch.unstack()[0]
    assert model.predict(state)[0] == pytest.approx(model.predict(batch)[0])
    with pytest.raises(MetanetError, match="not fitted"):
        MetanetRegressor().predict(batch)
    with pytest.raises(MetanetError, match="no parameter 'depth'"):
        model.set_params(depth=3)


def test_classifier() -> None:
    model = MetanetClassifier("render-logistic").fit(zoo("inr"), cut=Cut("iid", "image"))
    part = task("inr").parts["train"]
    assert model.score(part) > 0.5 and model.predict(part).dtype.kind == "i"
