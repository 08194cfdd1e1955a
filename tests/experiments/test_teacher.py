"""The experiment on a teacher: its plan, its controls, a few runs in small, its tables."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import CPU, expect_one_line
from scipy import stats

from data import read_split
from experiments import teacher, teacher_run
from experiments.teacher_plan import (
    RANDOM,
    TEACHERS,
    USES,
    Places,
    TeacherRun,
    all_runs,
    command,
    from_json,
    to_json,
)
from experiments.teacher_run import EQUALLY_HARD, random_bar, shuffle_equally_hard
from experiments.teacher_summary import (
    beyond_random,
    plain_run,
    summary,
    table_text,
    write_summary,
)
from training.objectives import OBJECTIVES
from training.options import check, parse

pytest.importorskip("sklearn")
PLACES = Places("/work", "/results", "/photos", "/json", "/people.json", "/image", "a/text")
SMALL = ("--image_encoder", "small-convnext", "--text_encoder", "tiny-bert", "--vocab",
         "vocab/shapes.txt", "--image_res", "64", "--image_stats", "clip", "--embed_size", "16",
         "--num_epochs", "1", "--batch_size_train", "16", "--batch_size_test", "16",
         "--easy_epochs", "0", "--log_step", "2", *CPU)


# ----------------------------------------------------------------------------------------- the plan


def test_every_run_has_the_plain_one_that_it_is_compared_with():
    for table, runs in all_runs().items():
        assert len(set(runs)) == len(runs), table
        assert all(plain_run(run) in sum(all_runs().values(), []) for run in runs)
    everything = set(sum(all_runs().values(), []))
    assert len({run.name for run in everything}) == len(everything)
    assert {run.use for run in everything} == set(USES)
    assert {run.teacher for run in everything} == set(TEACHERS)


def test_every_run_is_a_command_that_train_takes():
    """And one that does what the run says."""
    for run in sum(all_runs().values(), []):
        options, _ = parse("", command(run, PLACES))
        check(options)
        assert (options.seed, options.loss) == (run.seed, run.loss)
        assert options.batch_size_train == run.batch or not run.batch
        assert (options.teacher is None) is (run.use == "plain")
        assert (options.match_bar or 0) == float(run.use.partition("bar_")[2] or 0)
        assert from_json(to_json(run, PLACES)) == (run, PLACES)


# -------------------------------------------------------------------------------------- the control


def test_as_many_are_left_out_among_the_equally_hard():
    """Group by group in each row; own pairs are neither counted nor drawn; and at random."""
    torch.manual_seed(0)
    count = 34
    ids = torch.arange(count) // 2  # two captions a photo
    own = ids[:, None] == ids
    similarity, excluded = torch.rand(count, count), (torch.rand(count, count) < 0.3) & ~own
    found = shuffle_equally_hard(excluded, similarity, own, torch.Generator().manual_seed(1))
    assert not (found & own).any() and not torch.equal(found, excluded)
    for row in range(count):
        order = sorted((column for column in range(count) if not own[row, column]),
                       key=lambda column: -float(similarity[row, column]))
        for start in range(0, len(order), EQUALLY_HARD):
            group = order[start : start + EQUALLY_HARD]
            assert found[row, group].sum() == excluded[row, group].sum()
    again = shuffle_equally_hard(excluded, similarity, own, torch.Generator().manual_seed(1))
    other = shuffle_equally_hard(excluded, similarity, own, torch.Generator().manual_seed(2))
    assert torch.equal(found, again) and not torch.equal(found, other)


def test_the_control_takes_the_place_of_the_triplet_loss_for_its_run_alone():
    usual = OBJECTIVES["triplet"]
    with random_bar(TeacherRun("linear", "triplet", "bar_0.2", RANDOM)):
        assert OBJECTIVES["triplet"].path.endswith("RandomBarObjective")
    with random_bar(TeacherRun("linear", "triplet", "bar_0.2")):
        assert OBJECTIVES["triplet"] == usual
    assert OBJECTIVES["triplet"] == usual


# ------------------------------------------------------------------------------------ runs in small


@pytest.fixture(scope="module")
def small(data, tmp_path_factory):
    """Places of an experiment on `shapes` under the names of Flickr8k, and its runs."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "json").mkdir()
    for name in "train", "val", "test":
        split = read_split("shapes", name, data)
        records = [{"image": split.images[image], "caption": caption} for image, caption in
                   zip(split.image_of_text, split.captions)]
        (folder / "json" / f"flickr8k_{name}.json").write_text(json.dumps(records))
    images = [image.rsplit("/", 1)[-1] for image in split.images]
    people = [{"image": images[0], "caption_of": images[number], "caption_no": 0,
               "yes": number % 2, "no": 1 - number % 2} for number in range(1, 7)]
    (folder / "people.json").write_text(json.dumps(people))
    (folder / "results").mkdir()
    places = Places(
        str(folder / "work"), str(folder / "results"), str(data), str(folder / "json"),
        str(folder / "people.json"), "small-convnext", "tiny-bert", SMALL)
    for name in ("sentences", "shuffled", "words"):
        place = places.teacher_file(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = np.random.default_rng(0).normal(size=(len(read_split(
            "shapes", "train", data).captions), 4))
        np.savez(place, text_embeds=rows)
    runs = [TeacherRun("linear", "triplet", use, name, 16) for use, name in
            (("plain", "sentences"), ("bar_0.05", "sentences"), ("bar_0.05", RANDOM))]
    for run in runs:
        teacher_run.train_and_record(run, places)
    return places, runs


def test_runs_leave_results_and_shared_features_alone(small):
    places, runs = small
    results = [json.loads(places.result(run).read_text()) for run in runs]
    assert [result["left_out"] is None for result in results] == [True, False, False]
    assert results[1]["left_out"] == pytest.approx(results[2]["left_out"], rel=0.2)
    assert 0 < results[0]["test"]["ap"] <= 1 and results[0]["test"]["rsum"] > 0
    assert "$DATA_PATH" in results[0]["command"] and places.work not in str(results)
    assert not any(places.folder(run).exists() for run in runs)
    names = {path.name for path in teacher_run.Path(places.work, "features").iterdir()}
    assert len(names) == 6 and all(name.endswith("_features.pt") for name in names)


def test_what_is_done_is_not_run_again(small, monkeypatch):
    places, runs = small
    more = TeacherRun("linear", "triplet", "weights", batch=16)
    monkeypatch.setattr(teacher, "all_runs", lambda: {"losses": [*runs, more], "controls": runs})
    assert teacher.open_runs(["losses", "controls"], places) == [more]


def test_the_teachers_that_are_files(data, small, tmp_path, monkeypatch):
    places, _ = small
    other = Places(str(tmp_path), *list(vars(places).values())[1:])

    class Teacher:
        def __init__(self, *_):
            pass

        def embed(self, captions):
            return torch.arange(len(captions) * 3).view(-1, 3).half()

    monkeypatch.setattr(teacher_run, "CaptionTeacher", Teacher)
    teacher_run.make_teachers(other)
    rows = {name: np.load(other.teacher_file(name))["text_embeds"]
            for name in ("sentences", "shuffled", "words")}
    assert not (rows["sentences"] == rows["shuffled"]).all()
    assert (np.sort(rows["sentences"], axis=0) == np.sort(rows["shuffled"], axis=0)).all()
    np.testing.assert_allclose(np.linalg.norm(rows["words"], axis=1), 1, atol=1e-2)


# ------------------------------------------------------------------------------------------- tables


def made_up(values):
    """Results by run: rsum, AP and AUROC from (use, seed) to a number."""
    return {TeacherRun("linear", "triplet", use, batch=512, seed=seed):
            {"test": {"rsum": value, "ap": value / 1000, "auroc": 0.5},
             "left_out": None if use == "plain" else 0.01}
            for (use, seed), value in values.items()}


def test_differences_are_paired_by_seed_with_students_interval():
    values = {("plain", 3407): 100.0, ("plain", 1): 110.0, ("plain", 2): 130.0,
              ("bar_0.2", 3407): 103.0, ("bar_0.2", 1): 114.0, ("bar_0.2", 4): 1.0}
    [plain, bar] = summary(made_up(values))["losses"]
    assert plain["seeds"] == [3407, 1, 2] and "difference" not in plain["rsum"]
    assert bar["seeds"] == [3407, 1] and bar["rsum"]["difference"] == 3.5
    wanted = stats.t.ppf(0.975, 1) * np.std([3, 4], ddof=1) / 2**0.5
    assert bar["rsum"]["interval"] == pytest.approx(wanted)
    text = table_text("Losses", [plain, bar])
    assert "+3.5 ± 6.4" in text and "**+3.5" not in text and "1.00 %" in text


def test_a_difference_beyond_its_interval_is_bold():
    values = {("plain", seed): 100.0 for seed in (3407, 1)} | {
        ("weights", 3407): 110.0, ("weights", 1): 110.2}
    rows = summary(made_up(values))["losses"]
    assert "**+10.1 ± 1.3**" in table_text("Losses", rows)


def test_what_the_teacher_gives_beyond_chance_is_paired_too():
    runs = {("sentences", 3407): 105.0, ("sentences", 1): 107.0, ("random", 3407): 101.0,
            ("random", 1): 102.0, ("random", 2): 9.0}
    results = {TeacherRun("linear", "triplet", "bar_0.2", name, 512, seed):
               {"test": {"rsum": value, "ap": 0.1, "auroc": 0.5}}
               for (name, seed), value in runs.items()}
    [line] = beyond_random(results).splitlines()
    wanted = stats.t.ppf(0.975, 1) * np.std([4, 5], ddof=1) / 2**0.5
    assert "(2 seeds)" in line and f"rsum +4.5 ± {wanted:.1f}" in line


def test_the_report_writes_tables_and_figure(small, tmp_path, capsys):
    places, _ = small
    folder = tmp_path / "teacher"
    folder.mkdir()
    for number, (use, name) in enumerate((("plain", "sentences"), ("bar_0.05", "sentences"))):
        run = TeacherRun("linear", "triplet", use, name, 512)
        result = {"run": vars(run), "left_out": None,
                  "test": {"rsum": number + 1.0, "ap": 0.2, "auroc": 0.5}}
        (folder / f"{run.name}.json").write_text(json.dumps(result))
    teacher.main(["--report", "--results", str(folder)])
    printed = capsys.readouterr().out
    assert "p > .05 left out" in printed and printed.strip() == (
        tmp_path / "teacher.md").read_text().strip()
    for ending in "png", "svg", "json":
        assert (tmp_path / f"teacher.{ending}").stat().st_size > 500
    write_summary(folder)  # over its own files
    (tmp_path / "teacher.json").write_text("mine")
    expect_one_line(["--report", "--results", str(folder)], "teacher.json", capsys, teacher.main)
    assert (tmp_path / "teacher.json").read_text() == "mine"


@pytest.mark.parametrize("arguments, named", [
    ([], "--data_path"), (["--data_path", "x", "--json_path", "y"], "--judgements"),
    (["--jobs", "0"], "--jobs"), (["--report", "--results", "{folder}"], "--results"),
    (["--tables", "others"], "--tables")])
def test_a_mistake_is_told_in_one_line(tmp_path, capsys, arguments, named):
    arguments = [word.format(folder=tmp_path) for word in arguments]
    expect_one_line([*arguments], named, capsys, teacher.main)


def test_a_file_that_is_no_result_is_named(tmp_path, capsys):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps({"run": {"regime": "linear"}}))
    expect_one_line(["--report", "--results", str(folder)], "x.json", capsys, teacher.main)
