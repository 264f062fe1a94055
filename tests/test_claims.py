"""The claims study: a quick run from scratch, a rerun that does nothing, and its verdicts."""

import json
import sys
from pathlib import Path

import pytest

from tests.command_line import digests, script
from vd.files import write_csv

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table():
    """experiments/claims_table.py, which is no package."""
    sys.path.insert(0, str(ROOT / "experiments"))
    import claims_table

    sys.path.pop(0)
    return claims_table


def line(cell, correct, members=None):
    """A cell of six clips in three groups, two folds, one string of bits a seed."""
    return {
        "cell": cell,
        "clips": list("abcdef"),
        "clusters": [0, 0, 1, 1, 2, 2],
        "correct": correct,
        "members": members
        or [
            {
                "fold": fold,
                "seed": seed,
                "n": 3,
                "n_train": 3,
                "accuracy": bits[3 * fold : 3 * fold + 3].count("1") / 3,
            }
            for seed, bits in enumerate(correct)
            for fold in (0, 1)
        ],
    }


def test_a_difference_is_paired_over_clips_and_groups(table):
    base, better = line("a", ["110000", "110010"]), line("b", ["110011", "110011"])
    made = table.measure(base, better, table.Claim("", "a", "b", 1.0))
    assert made.difference == pytest.approx(100 * 3 / 12)
    # the third group gains 3 of 4, the others nothing: drawn 0 to 3 times of 3
    assert (made.low, made.high) == (0.0, pytest.approx(75.0))
    assert made.needed > 0
    same = table.measure(base, {**base, "cell": "b"}, table.Claim("", "a", "b"))
    assert same.high == -same.low == pytest.approx(100 * (1 - 0.025 ** (1 / 3)))
    with pytest.raises(ValueError, match="tested other clips"):
        table.measure(base, {**better, "clusters": [0] * 6}, table.Claim("", "a", "b"))


def test_where_all_folds_gain_the_same_mcnemars_test_decides(table):
    base, better = line("a", ["100100", "100100"]), line("b", ["110110", "110110"])
    claim = table.Claim("", "a", "b", 0.0)
    made = table.measure(base, better, claim)
    assert made.p == 0.5  # two clips of each seed
    assert table.judge(claim, made, made.p) == "cannot be decided here"
    random = table.measure(base, {**better, "cell": "random_folds"}, claim)
    assert random.p == 0.5
    apart = {**better, "cell": "random_folds", "clusters": [0, 1, 2, 3, 4, 5]}
    assert table.measure(base, apart, claim).p is None  # no fold to pair with


@pytest.mark.parametrize(
    ("least", "within", "low", "high", "verdict"),
    [
        (0.5, None, 0.6, 2.0, "holds"),
        (0.5, None, -2.0, 0.4, "does not hold"),
        (0.5, None, 0.4, 2.0, "cannot be decided here"),
        (0.0, None, 0.0, 0.0, "cannot be decided here"),
        (None, 1.0, -0.9, 0.9, "holds"),
        (None, 1.0, 1.1, 2.0, "holds"),
        (None, 1.0, -2.0, -1.1, "does not hold"),
        (None, 1.0, -2.0, 0.0, "cannot be decided here"),
        (None, None, 0.1, 2.0, "nothing promised: better"),
        (None, None, -2.0, -0.1, "nothing promised: worse"),
        (None, None, -2.0, 0.1, "nothing promised: cannot be decided here"),
    ],
)
def test_verdicts_are_those_of_the_interval(table, least, within, low, high, verdict):
    claim = table.Claim("", "a", "b", least, within)
    made = table.Measured(0.0, low, high, 0.01, 1, 1.0)
    assert table.judge(claim, made, 0.01) == verdict
    if within is None and "does not" not in verdict:
        assert "cannot be decided" in table.judge(claim, made, 0.5)  # one of many


def test_every_row_compares_cells_that_the_study_has(table):
    text = (ROOT / "experiments" / "claims.py").read_text()
    for claim in table.CLAIMS:
        assert f'"{claim.base}":' in text
        assert f'"{claim.better}":' in text


@pytest.mark.slow
def test_the_quick_study_runs_from_scratch_and_again(clips, tmp_path):
    rows = [
        {"path": path, "label": path.parent.name, "group": path.stem[-1]}
        for path in sorted(clips.glob("*/*/*.mp4"))
    ]
    for name in ("scfd", "hockey"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "manifest.csv", rows)
    out = tmp_path / "out"
    command = [
        ROOT / "experiments" / "claims.py", "--data-dir", tmp_path,
        "--cache-dir", tmp_path / "cache", "--runs-dir", tmp_path / "runs", "--out", out,
        "--only", "optimized", "--quick",
    ]  # fmt: skip
    script(*command)
    lines = [
        json.loads(row) for row in (out / "claims_quick.jsonl").read_text().splitlines()
    ]
    assert [(line["dataset"], line["cell"]) for line in lines] == [
        ("scfd", "optimized"),
        ("hockey", "optimized"),
    ]
    for line in lines:
        (bits,) = line["correct"]
        assert len(bits) == line["n"] == len(line["clips"]) == 32
        assert bits.count("1") / 32 == pytest.approx(line["accuracy"]["mean"])
        weighted = sum(row["accuracy"] * row["n"] for row in line["members"]) / 32
        assert weighted == pytest.approx(line["accuracy"]["mean"])
    words = (out / "claims_quick.md").read_text()
    assert (
        "2 of 4 cells are not there yet (original on scfd, original on hockey)" in words
    )
    before = digests(out)
    with open(out / "claims_quick.jsonl", "a") as handle:
        handle.write('{"dataset": "hockey", "cell": "orig')  # as a kill leaves it
    script(*command)
    assert digests(out) == before
    command[command.index("optimized")] = "alpha05"
    refused = script(*command, code=2)
    assert "--quick has the cells optimized and original only" in refused.stderr
    command[command.index("alpha05")] = "optimized"
    log = out / "claims_quick.jsonl"
    whole = log.read_text()
    first = json.loads(whole.splitlines()[0])
    stale = json.dumps(first | {"settings": {"epochs": 7}}) + "\n"
    for text, words in (
        ("garbage\n" + whole, "claims_quick.jsonl, line 1 is damaged"),
        (whole + whole.splitlines()[0] + "\n", "repeats the cell optimized on scfd"),
        (stale, "the cell optimized on scfd with settings that are not those of"),
    ):
        log.write_text(text)
        refused = script(*command, code=2)
        assert words in refused.stderr
