"""What a teacher says of a scored split: in embeddings files, beside people's answers, in tests."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.judged import as_json, small_embeddings, small_split
from helpers.runs import CPU, command, expect_one_line

import evaluation
import train
from metrics.embeddings import read_embeddings, save_embeddings
from metrics.judgements import agreement, judge, judgement_lines
from metrics.teacher import fit_teacher

JUDGED = [0, 0, 1, 2, 2], [3, 4, 1, 0, 2]  # photos and captions of `PAIRS` that can be scored
YES = np.array([1, 0, 2 / 3, 1 / 3, 0])


def seen(split, seed=3):
    """The captions of a split in the eyes of a teacher; of the last one it knows no word."""
    generator = torch.Generator().manual_seed(seed)
    embeds = F.normalize(torch.randn(len(split.captions), 7, generator=generator), dim=1)
    embeds[-1] = 0
    return embeds.half()


@pytest.fixture
def taught(tmp_path):
    """Embeddings of a small judged split with those of a teacher."""
    embeddings = small_embeddings(small_split(tmp_path))
    embeddings.teacher_embeds = seen(embeddings.split)
    embeddings.facts["teacher"] = "a teacher"
    return embeddings


def test_people_are_compared_with_the_teachers_similarity_and_posterior(taught, tmp_path):
    as_json(tmp_path / "x.json")
    result = judge(taught, tmp_path / "x.json", resamples=20)
    captions, owners = taught.teacher_embeds.double().numpy(), taught.split.image_of_text
    r = np.array([np.mean([captions[other] @ captions[text]
                           for other in np.flatnonzero(owners == image)])
                  for image, text in zip(*JUDGED)])
    for key, value in agreement(YES, r).items():
        assert result["teacher"][key][0] == pytest.approx(value)
        # P(match) never falls as r grows, and no two of these values of r are the same
        assert result["teacher_posterior"][key][0] == pytest.approx(value)
    assert sum(row["pairs"] for row in result["teacher_calibration"]) == len(YES)
    lines = judgement_lines(result).splitlines()
    for name in "teacher", "teacher posterior":
        [row] = [line for line in lines if line.startswith(f"  {name:17} ") and "[" in line]
        assert f" {result['teacher']['ap'][0]:.3f} [" in row
    heading = next(number for number, line in enumerate(lines)
                   if line.startswith("  teacher posterior  pairs"))
    assert len(lines) == heading + 1 + len(result["teacher_calibration"])


def test_without_a_teacher_nothing_is_said_of_one(taught, tmp_path):
    as_json(tmp_path / "x.json")
    taught.teacher_embeds = None
    result = judge(taught, tmp_path / "x.json", resamples=5)
    assert fit_teacher(taught) is None and not [name for name in result if "teacher" in name]
    assert "teacher" not in judgement_lines(result)


def test_the_prior_is_a_hundredth(taught):
    """P(match) where both Gaussians are alike."""
    teacher = fit_teacher(taught)
    teacher.negative.load_state_dict(teacher.positive.state_dict())
    assert teacher.from_similarity(torch.tensor([0.1, 0.6])).tolist() == pytest.approx([0.01] * 2)


def test_a_file_keeps_the_teachers_embeddings_to_the_bit(taught, tmp_path):
    save_embeddings(taught, tmp_path / "e.npz", "bfloat16")
    again = read_embeddings(tmp_path / "e.npz")
    assert again.teacher_embeds.dtype == torch.float16 and again.facts["teacher"] == "a teacher"
    assert torch.equal(again.teacher_embeds, taught.teacher_embeds)


def test_a_file_without_them_is_read_as_before(taught, tmp_path):
    taught.teacher_embeds = None
    save_embeddings(taught, tmp_path / "e.npz")
    assert "teacher_embeds" not in np.load(tmp_path / "e.npz")
    assert read_embeddings(tmp_path / "e.npz").teacher_embeds is None


@pytest.fixture
def judged(data, tmp_path):
    """Judgements of every second pair of photo and foreign caption in the test split of shapes."""
    names = [record["image"]
             for record in json.loads((data / "shapes_test.json").read_text())]
    names = list(dict.fromkeys(names))
    records = [{"image": image, "caption_of": other, "caption_no": 0, "yes": (a + b) % 3, "no": 1}
               for a, image in enumerate(names) for b, other in enumerate(names)
               if a != b and (a + b) % 2]
    (tmp_path / "judged.json").write_text(json.dumps(records))
    return str(tmp_path / "judged.json")


def words(capsys):
    """What a command has printed, as one line of single spaces."""
    return " ".join(capsys.readouterr().out.split())


def test_a_teacher_of_the_training_captions_scores_a_checkpoint_and_its_file(
        data, finished, judged, tmp_path, capsys):
    """The file that is written says the same again, without the teacher."""
    found = {}
    for name, arguments in (
            ("first", [str(finished / "model_best.pth.tar"), "--data_path", str(data),
                       "--workers", "0", "--teacher", "captions:20", "--save_embeddings",
                       str(tmp_path / "e.npz")]),
            ("again", ["--embeddings", str(tmp_path / "e.npz")]),
            ("other", ["--embeddings", str(tmp_path / "e.npz"), "--teacher", "captions:2",
                       "--dataset", "shapes", "--data_path", str(data)])):
        evaluation.main([*CPU, *arguments, "--judgements", judged, "--output",
                         str(tmp_path / f"{name}.json")])
        assert "teacher posterior" in words(capsys)
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["judgements"]
    assert found["first"] == found["again"]
    assert found["first"]["teacher"] != found["other"]["teacher"]
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["teacher_embeds"].shape[1] <= 20
        assert json.loads(str(arrays["facts"]))["teacher"] == "captions:20"


def test_a_teacher_that_is_a_file_has_a_row_for_each_caption_of_the_split(
        taught, tmp_path, capsys):
    as_json(tmp_path / "x.json")
    teacher, scored = tmp_path / "teacher.npz", tmp_path / "e.npz"
    np.savez(teacher, text_embeds=3 * taught.teacher_embeds.float().numpy())
    wanted = judge(taught, tmp_path / "x.json")["teacher"]
    taught.teacher_embeds = None
    save_embeddings(taught, scored)
    arguments = [*CPU, "--embeddings", str(scored), "--judgements", str(tmp_path / "x.json"),
                 "--teacher", str(teacher)]
    evaluation.main([*arguments, "--output", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["judgements"]["teacher"]
    assert found["ap"] == wanted["ap"] and found["spearman"] == wanted["spearman"]
    before = teacher.read_bytes()
    expect_one_line([*arguments, "--save_embeddings", str(teacher)], "teacher.npz", capsys,
                    evaluation.main)
    assert teacher.read_bytes() == before
    np.savez(teacher, text_embeds=np.eye(3, dtype=np.float32))
    expect_one_line(arguments, "--teacher", capsys, evaluation.main)


def test_a_run_with_a_teacher_is_tested_with_it(data, judged, tmp_path, capsys):
    """At its end, and again by --test; a file of the training captions is left out."""
    folder = tmp_path / "run"
    more = "--teacher", "captions:20", "--judgements", judged, "--num_epochs", "1"
    train.main(command(data, folder, *more))
    first = json.loads((folder / "test_results.json").read_text())["judgements"]
    assert "teacher posterior" in words(capsys)
    train.main(command(data, folder, *more, "--test"))
    assert json.loads((folder / "test_results.json").read_text())["judgements"] == first
    np.savez(tmp_path / "t.npz", text_embeds=np.eye(120, dtype=np.float32))
    train.main(command(data, folder, "--teacher", str(tmp_path / "t.npz"), "--judgements", judged,
                       "--test"))
    found = json.loads((folder / "test_results.json").read_text())["judgements"]
    assert "teacher" not in found and found["similarity"] == first["similarity"]


def test_a_run_without_a_teacher_may_be_tested_with_one(data, finished, judged, tmp_path, capsys):
    train.main(["--test", "--resume", str(finished / "model_best.pth.tar"), "--logger_name",
                str(tmp_path / "test"), "--dataset", "shapes", "--data_path", str(data),
                "--workers", "0", "--judgements", judged, "--teacher", "captions:20", *CPU])
    assert "teacher posterior" in words(capsys)
