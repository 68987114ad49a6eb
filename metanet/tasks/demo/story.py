"""Part 4 of the page, and the page as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from metanet.report import (
    Block,
    Code,
    Facts,
    Note,
    Page,
    Section,
    Table,
    Text,
    intervals,
    scatter,
)
from metanet.tasks.demo.population import HYPER_PARAMETERS, N_PARAMETERS, SNAPSHOTS
from metanet.tasks.demo.read import Read, Row
from metanet.tasks.demo.words import interval

_TRACKS = {"W": "weights only", "D": "labelled data", "-": "neither"}


def section(found: Read) -> Section:
    """The part of the page about reading."""
    c, best = found.census, found.row("metanet, mean")
    blocks: list[Block] = [
        Facts([(f"{c.runs}", f"runs trained in {found.seconds[0]:.0f} s, "
                             f"{N_PARAMETERS:,} weights each"),
               (f"{c.diverged} + {c.chance}", "diverged + at chance level, left out of the table"),
               (f"{c.train_runs}/{c.validation_runs}/{c.test_runs}",
                "runs to train, choose and test on"),
               (f"{best.score.tau.value:.3f}", f"Kendall's τ of the metanet; the ceiling is "
                                               f"{found.ceiling.tau:.3f}")]),
        Text(f"Every run has its own {_listed(HYPER_PARAMETERS)} and seed. It is saved at "
             f"{len(SNAPSHOTS)} moments; checkpoints of the training runs "
             f"({c.checkpoints} that are better than chance) are there to learn from, for every "
             f"row alike. Validation and test use the last checkpoint only. The target is the "
             f"accuracy on 797 images that no net was trained on."),
        Text("The space of all members, "
             + ("verified:" if found.proof.ok else "which could not be verified:")),
        Code(str(found.space)),
        _table(found),
        intervals([(row.prediction.name, row.score.tau.value, row.score.tau.low,
                    row.score.tau.high) for row in found.rows],
                  (found.ceiling.tau, "label-noise ceiling"), "Kendall's τ on the held-out runs",
                  "Kendall's τ of every row with its interval", ""),
        _verdict(found),
        scatter([(title, found.row(start).prediction.values.tolist(), found.true.tolist())
                 for title, start in (("metanet (W)", "metanet, mean"),
                                      ("statistics, boosted (W)", "weight statistics"),
                                      ("100 images (D)", "accuracy on 100"))],
                "predicted", "true accuracy", "Predicted against true accuracy",
                "Held-out runs, one point each."),
        *_ceiling_and_controls(found),
    ]
    return Section("4 Read", "A metanet takes the weights of a small CNN and says how accurate it "
                   "is, without running it. Here it is measured beside everything simpler.", blocks)


def _listed(names: Sequence[str]) -> str:
    full = {"log lr": "learning rate", "log images": "number of images",
            "adam": "optimizer (SGD or AdamW)"}
    return ", ".join(full.get(name, name.removeprefix("log ")) for name in names)


def _table(found: Read) -> Table:
    rows = [[row.prediction.name, row.prediction.track, interval(row.score.tau),
             interval(row.score.r2), str(row.prediction.trials)] for row in found.rows]
    return Table(
        ["predictor", "track", "τ", "R²", "settings tried"], rows,
        numbers=frozenset({2, 3, 4}), strong=frozenset({len(rows) - 1}),
        caption="With 95 % bootstrap intervals over held-out runs. Track W reads weights only, D "
                "runs the net on labelled images, – does neither or uses hyper-parameters, which a "
                "file does not tell. Where several settings were tried, the validation runs chose; "
                "so they did for the metanets' training epoch.")


def _verdict(found: Read) -> Note:
    gain = found.gain
    told = (f"τ of the metanet minus τ of boosted weight statistics: {gain.value:+.3f} "
            f"[{gain.low:+.3f}, {gain.high:+.3f}] on the same resamples. ")
    if gain.low > 0:
        return Note(told + "The metanet is better here.", "good")
    if gain.high < 0:
        return Note(told + "The metanet is worse here.", "bad")
    return Note(told + "So few held-out runs do not tell them apart.")


def best_of_track(found: Read, track: str) -> Row:
    """The row of a track with the highest τ."""
    rows = [row for row in found.rows if row.prediction.track == track]
    return max(rows, key=lambda row: row.score.tau.value)


def _ceiling_and_controls(found: Read) -> list[Block]:
    top = max(found.rows, key=lambda row: row.score.tau.value)
    same, differs = found.permuted_change < 1e-5, found.shuffled_change > 0.01
    return [
        Text(f"The best row of all is “{top.prediction.name}” (uses: "
             f"{_TRACKS[top.prediction.track]}); the best that reads weights only is "
             f"“{best_of_track(found, 'W').prediction.name}”."),
        Text(f"The ceiling: the target is itself measured on 797 images. If the measured accuracy "
             f"were the true one and were measured again on 797 images drawn with replacement, "
             f"the two would agree with τ = {found.ceiling.tau:.3f} and R² = "
             f"{found.ceiling.r2:.3f}: no predictor can be expected to do better. Accuracies on "
             f"two disjoint halves of the images agree with τ = {found.ceiling.halves:.3f}."),
        Note(f"Permuted checkpoints get the same prediction: the largest change over all held-out "
             f"runs is {found.permuted_change:.0e}." if same else
             f"Permuting changed a prediction by {found.permuted_change:.1e}.",
             "good" if same else "bad"),
        Note(f"Shuffled checkpoints (the same numbers in each tensor, in any order) do not: "
             f"predictions move by {found.shuffled_change:.2f} on average, and τ goes from "
             f"{found.rows[-1].score.tau.value:.2f} to {found.shuffled_tau:.2f}. The smaller the "
             f"fall, the more the metanet lives on what shuffling keeps: the statistics of each "
             f"tensor." if differs else
             f"Shuffling the entries of each tensor moves predictions by only "
             f"{found.shuffled_change:.3f}.", "good" if differs else "bad"),
    ]


def page(sections: Sequence[Section], seconds: float, machine: str) -> Page:
    """The whole page."""
    return Page(
        "metanet demo: networks as data",
        "Any checkpoint in, its exact symmetry out, and what can be built on that. Everything "
        f"below was computed in {seconds:.0f} seconds when this page was made.",
        sections, f"Made by `metanet demo` on {machine}.")
