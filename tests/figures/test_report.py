"""The report is one file that needs no other, and text from data stays text in it."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import CPU
from PIL import Image

import evaluation
from common.options import parse_scoring
from data import Split
from figures import galleries
from figures.report import write_report
from metrics.embeddings import Embeddings, save_embeddings
from metrics.evidence import fit_evidence, score_by_evidence
from metrics.teacher import fit_teacher

FACTS = {"dataset": "shapes", "split": "test", "phase": "FNE", "epoch": 2, "num_epochs": 3,
         "step": 14, "margin": 0.2, "tau": 0.5, "posterior_floor": 1e-3, "nums_right_sims": 200,
         "batch_size_train": 6}
NASTY = '<script>alert("x")</script> & $title <b>bold</b>'


class Page(HTMLParser):
    """A parsed report: its tags, attributes, classes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.classes = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.classes += [value for name, value in attributes if name == "class"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def scored(tmp_path):
    """Twelve photos with two captions each, FNE's statistics, all true matches, and a caption that
    holds html."""
    torch.manual_seed(0)
    photos = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(photos):
        Image.new("RGB", (50, 40), (20 * number, 99, 0)).save(path)
    owners = np.repeat(np.arange(12), 2)
    matches = owners[:, None] == np.arange(12)
    matches |= np.random.default_rng(0).random(matches.shape) < 0.2
    captions = [f"caption {number}" for number in range(24)]
    captions[5] = NASTY
    images = F.normalize(torch.randn(12, 8) + 1, dim=1)
    texts = F.normalize(images[owners] + 0.4 * torch.randn(24, 8), dim=1)
    split = Split(tmp_path, [path.name for path in photos], captions, owners, matches)
    # count, mean and m2: N+ = 0.7 +- 0.1, N- = 0.5 +- 0.1
    return Embeddings(images, texts, split, np.array([[500, 0.7, 4.99], [1000, 0.5, 9.99]]),
                      0.05, dict(FACTS)), photos


def write(embeddings, photos, folder):
    """Write a report; return it parsed and as html, and the metrics."""
    options, _ = parse_scoring("", ["--embeddings", "e.npz"])
    metrics, _ = evaluation.all_metrics(embeddings, options)
    path = write_report(embeddings, metrics, "a <title>", photos, folder / "deep" / "er")
    assert path == folder / "deep" / "er" / "report.html"
    html = path.read_text(encoding="utf-8")
    return Page(html), html, metrics


def test_the_report_is_one_file_without_links(scored, tmp_path):
    page, html, _ = write(*scored, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["report.html"]
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert any(link.startswith("data:image/jpeg;base64,") for link in links)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in html.replace("url(#", "") and "@import" not in html
    assert "prefers-color-scheme: dark" in html and ("name", "viewport") in page.attributes
    assert len(html) < 600_000


def test_text_from_data_is_escaped(scored, tmp_path):
    page, html, _ = write(*scored, tmp_path)
    assert NASTY in page.text and "<script" not in html and "b" in page.tags
    assert "a <title>" in page.text and page.tags.count("title") == 1


def test_the_report_shows_the_numbers_that_the_command_prints(scored, tmp_path):
    page, _, metrics = write(*scored, tmp_path)
    for key in ("i2t_r1", "t2i_r10", "rsum", "i2t_meanr", "t2i_map_at_r", "i2t_r_precision"):
        assert f"{metrics[key]:.1f}" in page.text
    assert "500 confident pairs" in page.text


def test_mistakes_and_the_true_matches_among_them_are_counted(scored, tmp_path):
    """The slow loop counts one query at a time."""
    embeddings, photos = scored
    page, _, _ = write(embeddings, photos, tmp_path)
    similarity = (embeddings.text_embeds @ embeddings.image_embeds.T).numpy()
    owners, matches = embeddings.split.image_of_text, embeddings.split.matches
    wrong = true = 0
    for image in range(12):
        first = similarity[:, image].argmax()
        wrong += owners[first] != image
        true += owners[first] != image and matches[first, image]
    assert wrong > 1
    assert (f"For {wrong} of 12 the first result is not annotated, yet a true match for {true} of"
            in page.text)
    wrong = sum(similarity[text].argmax() != owners[text] for text in range(24))
    assert f"For {wrong} of 24 the first" in page.text


def test_known_true_matches_are_marked(scored, tmp_path):
    embeddings, photos = scored
    none = np.zeros_like(embeddings.split.matches)  # but for the annotated
    for matches in embeddings.split.matches, none, ~none:
        embeddings.split.matches = matches
        page, _, _ = write(embeddings, photos, tmp_path)
        marked, candidates = page.classes.count("right"), page.tags.count("figure") - (
            page.classes.count("row"))  # each row's first is what is asked for
        assert page.text.count("✓") == marked + 4  # four legends
        assert candidates > 30
        if matches.all() or not matches.any():
            assert marked == candidates * matches.all()
        else:
            assert 0 < marked < candidates


@pytest.mark.parametrize("title", ["<h3>By the known true matches",
                                   "<h3>The posterior by evidence, by the known true matches"])
def test_calibration_counts_every_unannotated_pair_above_the_cut_down(scored, tmp_path, title):
    embeddings, photos = scored
    page, html, _ = write(embeddings, photos, tmp_path)
    rows = html[html.index(title):].split("</table>")[0].split("<tr>")[2:]
    rows = [row.replace("</td>", "").split("<td>")[1:] for row in rows]
    counted = (embeddings.text_embeds @ embeddings.image_embeds.T).numpy() > 0.7 - 0.2
    counted[np.arange(24), embeddings.split.image_of_text] = False
    assert 50 < sum(int(row[1].replace(",", "")) for row in rows) == counted.sum() < 24 * 11
    matches = embeddings.split.matches & counted
    found = sum(int(row[1].replace(",", "")) * float(row[3].split(" %")[0]) / 100 for row in rows)
    assert found == pytest.approx(matches.sum(), abs=1)
    mean = sum(int(row[1].replace(",", "")) * float(row[2]) for row in rows)
    evidence = fit_evidence(embeddings)
    texts, images = map(torch.from_numpy, np.nonzero(counted))
    wanted = score_by_evidence(embeddings, evidence, images, texts)[1].sum()
    assert (mean == pytest.approx(float(wanted), abs=0.05)) == ("evidence" in title)


def test_galleries_show_both_posteriors_where_photos_have_several_captions(scored, tmp_path):
    embeddings, photos = scored
    page, _, _ = write(embeddings, photos, tmp_path)
    evidence = fit_evidence(embeddings)
    pairs = torch.cartesian_prod(torch.arange(12), torch.arange(24))
    known = score_by_evidence(embeddings, evidence, *pairs.T)[1].tolist()
    known = {galleries.probability(value) for value in known}
    shown = re.findall(r"s -?\d\.\d\d  p (\S+)  e ([\de.-]+)", page.text)
    assert len(shown) >= 24 and {e for _, e in shown} <= known
    assert sum(p == e for p, e in shown) < len(shown) / 4
    one = embeddings.split.image_of_text[::2]
    split = Split(tmp_path, embeddings.split.images, embeddings.split.captions[::2], one)
    page, _, _ = write(replace(embeddings, text_embeds=embeddings.text_embeds[::2], split=split),
                       photos, tmp_path)
    assert "  e " not in page.text and "by evidence" not in page.text


@pytest.fixture
def taught(scored):
    """The scored split in the eyes of a teacher, who sees the photos' numbers in the captions."""
    embeddings, photos = scored
    torch.manual_seed(1)
    topics = torch.randn(12, 6)[embeddings.split.image_of_text]
    embeddings.teacher_embeds = F.normalize(topics + 1.1 * torch.randn(24, 6), dim=1).half()
    embeddings.facts["teacher"] = "some-encoder"
    return embeddings, photos


def test_galleries_show_what_a_teacher_says(taught, tmp_path):
    embeddings, photos = taught
    page, _, _ = write(embeddings, photos, tmp_path)
    teacher = fit_teacher(embeddings)
    known = teacher.posterior(torch.arange(12), torch.arange(24)).flatten().tolist()
    known = {galleries.probability(value) for value in known}
    shown = re.findall(r"s -?\d\.\d\d  p (\S+)  e ([\de.-]+)  t ([\de.-]+)", page.text)
    assert len(shown) >= 24 and {t for *_, t in shown} <= known
    assert sum(e == t for _, e, t in shown) < len(shown) / 4
    assert "some-encoder, fitted to this split" in page.text


@pytest.mark.parametrize("has_statistics", [True, False])
def test_a_teachers_calibration_stands_beside_the_others(taught, tmp_path, has_statistics):
    """On the pairs of the others, or on all where there are none."""
    embeddings, photos = taught
    if not has_statistics:
        embeddings.statistics = None
    _, html, _ = write(embeddings, photos, tmp_path)
    rows = html[html.index("<h3>The teacher's P(match), by the known true matches"):]
    rows = rows.split("</table>")[0].split("<tr>")[2:]
    rows = [row.replace("</td>", "").split("<td>")[1:] for row in rows]
    counted = np.ones((24, 12), bool)
    if has_statistics:
        counted = (embeddings.text_embeds @ embeddings.image_embeds.T).numpy() > 0.7 - 0.2
    counted[np.arange(24), embeddings.split.image_of_text] = False
    assert sum(int(row[1].replace(",", "")) for row in rows) == counted.sum()
    mean = sum(int(row[1].replace(",", "")) * float(row[2]) for row in rows)
    texts, images = map(torch.from_numpy, np.nonzero(counted))
    _, posterior = fit_teacher(embeddings).of_pairs(images, texts)
    assert mean == pytest.approx(float(posterior.sum()), abs=0.015) and mean > 0.2
    assert ("<h3>By the known true matches" in html) == has_statistics


def test_without_statistics_the_report_has_no_posterior(scored, tmp_path):
    embeddings, photos = scored
    embeddings.statistics = None
    page, _, _ = write(embeddings, photos, tmp_path)
    assert "svg" not in page.tags and "P(false negative)" not in page.text
    assert "drawn" not in page.text and "hardest" in page.text
    embeddings.statistics = np.array([[1, 0.7, 0.0], [2, 0.5, 0.0]])  # too early for a spread
    assert "svg" not in write(embeddings, photos, tmp_path)[0].tags


def test_a_report_needs_no_photos(scored, tmp_path):
    embeddings, photos = scored
    photos[3].unlink()
    assert "img" in write(embeddings, photos, tmp_path)[0].tags
    page, _, _ = write(embeddings, None, tmp_path)
    assert "img" not in page.tags and "caption 7" in page.text


def test_the_command_writes_a_report_of_an_embeddings_file(scored, tmp_path, capsys):
    """It has photos if --data_path names them, and people's judgements if they are given."""
    embeddings, _ = scored
    save_embeddings(embeddings, tmp_path / "e.npz")
    judged = [{"image": f"{a}.png", "caption_of": f"{(a + step) % 12}.png", "caption_no": 0,
               "yes": int(step == 1), "no": 2 * int(step != 1)}
              for a in range(12) for step in (1, 2, 3)]
    (tmp_path / "j.json").write_text(json.dumps(judged))
    command = [*CPU, "--embeddings", str(tmp_path / "e.npz"), "--report", str(tmp_path / "out")]
    evaluation.main([*command, "--judgements", str(tmp_path / "j.json"),
                     "--data_path", str(tmp_path)])
    assert capsys.readouterr().out.rstrip().endswith("report.html")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "img" in page.tags and "By people's judgements" in page.text
    assert "By the known true matches" not in page.text  # an embeddings file does not hold them
    evaluation.main(command)
    assert "<img" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_missing_matplotlib_is_named_in_one_line(scored, tmp_path, capsys, monkeypatch):
    save_embeddings(scored[0], tmp_path / "e.npz")
    for name in "plots", "report":
        monkeypatch.delitem(sys.modules, f"figures.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as caught:
        evaluation.main([*CPU, "--embeddings", str(tmp_path / "e.npz"), "--report", str(tmp_path)])
    output = capsys.readouterr()
    assert caught.value.code == 2 and output.err.count("\n") == 1 and output.out == ""
    assert "matplotlib" in output.err and "--report" in output.err
    # Without --report the library is not needed.
    evaluation.main([*CPU, "--embeddings", str(tmp_path / "e.npz")])


def test_a_folder_that_cannot_be_written_is_named(scored, tmp_path, capsys):
    save_embeddings(scored[0], tmp_path / "e.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        evaluation.main([*CPU, "--embeddings", str(tmp_path / "e.npz"), "--report",
                         str(tmp_path / "file")])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: --report") and error.count("\n") == 1


def test_facts_are_escaped_too(scored, tmp_path):
    embeddings, photos = scored
    embeddings.facts["text_encoder"] = "<i>mine</i>"
    page, html, _ = write(embeddings, photos, tmp_path)
    assert "<i>mine</i>" in page.text and "i" not in page.tags
