"""The command that finds unannotated matches: against a loop over all pairs, and what it writes."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import expect_one_line
from helpers.shards import jpeg, write_shard

from data import read_split
from metrics.judgements import read_judgements
from scripts import find_matches
from teacher.posterior import TeacherPosterior

NASTY = "<script>a red & blue square</script>"


def some_teacher(photos=7, seed=0):
    """A teacher of so many photos with two to four captions each, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    image_of_text = torch.arange(photos).repeat_interleave(torch.arange(photos) % 3 + 2)
    image_of_text = image_of_text[torch.randperm(len(image_of_text), generator=generator)]
    embeds = torch.randn(len(image_of_text), 6, generator=generator)
    embeds = F.normalize(torch.randn(photos, 6, generator=generator)[image_of_text] + embeds, dim=1)
    return TeacherPosterior(embeds.half(), image_of_text, photos, 0.1), image_of_text


@pytest.mark.parametrize("blocks", [(1024, 16384), (2, 3), (3, 1)])
@pytest.mark.parametrize("per_photo, top, at_least", [
    (5, None, None), (2, None, None), (3, 4, None), (50, 10**6, None), (5, None, 0.1),
    (1, 3, 0.05)])
def test_pairs_are_those_of_a_slow_loop(monkeypatch, blocks, per_photo, top, at_least):
    monkeypatch.setattr(find_matches, "PHOTOS", blocks[0])
    monkeypatch.setattr(find_matches, "CAPTIONS", blocks[1])
    teacher, image_of_text = some_teacher()
    embeds = teacher.caption_embeds.double()
    wanted = []
    for image in range(7):
        own = teacher.photo_embeds[image].double()  # the mean of its captions, in half precision
        values = sorted(((float(own @ embeds[text]), image, text)
                         for text in range(len(embeds)) if int(image_of_text[text]) != image),
                        reverse=True)
        wanted += values[:per_photo]
    wanted.sort(reverse=True)
    posterior = [float(teacher.from_similarity(torch.tensor(r, dtype=torch.float64)))
                 for r, *_ in wanted]
    if at_least is not None:
        wanted = [pair for pair, p in zip(wanted, posterior) if p >= at_least]
    wanted = wanted[:top]
    assert wanted and (at_least is None or len(wanted) < 7 * per_photo)
    found = find_matches.find_matches(teacher, image_of_text, per_photo, top, at_least)
    assert list(zip(found.images.tolist(), found.texts.tolist())) == [
        (image, text) for _, image, text in wanted]
    assert found.similarity.tolist() == pytest.approx([r for r, *_ in wanted], abs=1e-6)
    assert found.posterior.tolist() == pytest.approx(posterior[:len(wanted)], rel=1e-4)


def command(data, place, *more):
    return ["test", "--dataset", "shapes", "--data_path", str(data), "--teacher", "captions:20",
            "--out", str(place / "found.json"), *more]


def test_what_it_writes_can_be_looked_at_and_answered(data, tmp_path, capsys):
    find_matches.main(command(data, tmp_path, "--top", "30", "--per_photo", "4"))
    first, last = capsys.readouterr().out.splitlines()
    assert last == f"{tmp_path / 'found.json'} and {tmp_path / 'found.html'}"
    records = json.loads((tmp_path / "found.json").read_text())
    split = read_split("shapes", "test", data)
    values = [record["posterior"] for record in records]
    assert len(records) == 30 and values == sorted(values, reverse=True)
    assert first.startswith("30 pairs of ") and f"P(match) {values[0]:.3f} to" in first
    for record in records:
        image, other = (split.images.index(record[key]) for key in ("image", "caption_of"))
        texts = np.flatnonzero(split.image_of_text == other)
        assert image != other and record["yes"] == record["no"] == 0
        assert split.captions[texts[record["caption_no"]]] == record["caption"]
    per_photo = [record["image"] for record in records]
    assert max(map(per_photo.count, per_photo)) <= 4
    # A page without links, on which each photo stands once, with all its captions.
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img ") == page.count("data:image/jpeg") == len(set(per_photo))
    assert not re.search("<script|<a |@import|url\\(", page)
    shown = split.images.index(per_photo[0])
    for text in [*np.flatnonzero(split.image_of_text == shown)]:
        assert f"<li>{split.captions[text]}</li>" in page
    assert page.index(f"<td>{records[0]['caption']}</td>") > page.index(per_photo[0])
    # Answers are read by --judgements, and what is not answered is counted.
    records[0]["yes"], records[1]["no"] = 2, 1
    (tmp_path / "answers.json").write_text(json.dumps(records))
    judgements = read_judgements(tmp_path / "answers.json", split)
    assert judgements.yes_share.tolist() == [1, 0] and judgements.left_out["not answered"] == 28


def test_matches_are_found_in_shards(tmp_path):
    """Each photo's thumbnail comes out of the tar."""
    colours = "red", "green", "blue", "black"
    write_shard(tmp_path / "s" / "0.tar", [
        (f"{colour}{end}", jpeg(colour) if end == ".jpg" else f"a {colour} page".encode())
        for colour in colours for end in (".jpg", ".txt")])
    place = tmp_path / "found.json"
    find_matches.main(["train", "--dataset", "custom", "--data_path",
                       str(tmp_path / "s" / "0.tar"), "--teacher", "captions:3", "--out",
                       str(place), "--per_photo", "2"])
    records, page = json.loads(place.read_text()), place.with_suffix(".html").read_text()
    assert len(records) == 8 and {record["caption_no"] for record in records} == {0}
    assert len(set(re.findall('src="(data:[^"]+)"', page))) == 4


def test_pairs_are_compared_with_the_answers_that_there_are(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(find_matches, "FIRST", 20)
    find_matches.main(command(data, tmp_path, "--top", "40"))
    records = json.loads((tmp_path / "found.json").read_text())
    for number in (0, 5, 30):
        records[number]["yes"] = 3
    records[7]["no"] = 1
    (tmp_path / "answers.json").write_text(json.dumps(records))
    capsys.readouterr()
    find_matches.main(command(data, tmp_path, "--top", "40", "--judgements",
                              str(tmp_path / "answers.json")))
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert lines[0].startswith("of the 20 likeliest pairs, people have judged 3,")
    assert "2 a match (66.7 %)" in lines[0] and lines[0].endswith("of yes 0.667")
    assert "of the 40 likeliest" in lines[1] and "3 a match (75.0 %)" in lines[1]


def test_answers_are_never_overwritten(data, tmp_path, capsys):
    find_matches.main(command(data, tmp_path, "--top", "3"))
    find_matches.main(command(data, tmp_path, "--top", "4"))  # nobody has answered yet
    place = tmp_path / "found.json"
    records = json.loads(place.read_text())
    assert len(records) == 4
    for content in ([*records[:3], records[3] | {"no": 1}], [records[0] | {"name": "me"}], [1], {}):
        place.write_text(json.dumps(content))
        before = place.read_bytes()
        expect_one_line(command(data, tmp_path), "--out", capsys, find_matches.main)
        assert place.read_bytes() == before
    place.unlink()
    (tmp_path / "found.html").write_text("somebody's page")
    expect_one_line(command(data, tmp_path), "found.html", capsys, find_matches.main)
    assert (tmp_path / "found.html").read_text() == "somebody's page" and not place.exists()


def test_texts_are_escaped_and_a_lost_photo_is_grey(tmp_path, capsys):
    """And a file of embeddings is a teacher too."""
    captions = [NASTY, "two", "three", "four"]
    (tmp_path / "test.json").write_text(json.dumps(
        [{"image": f"{number // 2}.jpg", "caption": text} for number, text in enumerate(captions)]))
    np.savez(tmp_path / "t.npz", text_embeds=np.random.default_rng(0).normal(size=(4, 5)))
    find_matches.main(["test", "--dataset", "custom", "--data_path", str(tmp_path), "--teacher",
                       str(tmp_path / "t.npz"), "--out", str(tmp_path / "x" / "found.json")])
    page = (tmp_path / "x" / "found.html").read_text()
    assert "<script" not in page and "&lt;script&gt;a red &amp; blue" in page
    assert page.count("<img ") == 2
    records = json.loads((tmp_path / "x" / "found.json").read_text())
    assert len(records) == 4 and NASTY in [record["caption"] for record in records]


@pytest.mark.parametrize("change, named", [
    (("--teacher", "captions:20"), "--teacher"), (("--out", "found.json"), "--out"),
    (("test",), "split"), (("--data_path", "data"), "--data_path")])
def test_what_is_left_out_is_told_in_a_line(data, tmp_path, capsys, change, named):
    words = command(data, tmp_path)
    at = words.index(change[0])
    words = words[:at] + words[at + len(change):]
    if named == "--data_path":
        words[words.index("shapes")] = "custom"
    expect_one_line(words, named, capsys, find_matches.main)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, named", [
    (("--top", "0"), "--top"), (("--at_least", "1.5"), "--at_least"), (("--per_photo", "0"),
    "--per_photo"), (("--out", "found.txt"), "--out"), (("--judgements", "no.json"), "no.json"),
    (("--teacher", "no/such"), "no/such")])
def test_a_slip_is_told_in_a_line(data, tmp_path, capsys, flags, named):
    expect_one_line(command(data, tmp_path, *flags), named, capsys, find_matches.main)
    assert not list(tmp_path.iterdir())


def test_a_split_that_is_none_is_told_in_a_line(data, tmp_path, capsys):
    expect_one_line(["dev", *command(data, tmp_path)[1:]], "split dev", capsys, find_matches.main)
