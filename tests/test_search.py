"""search.py as its users call it: results, index, output and mistakes."""

import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.paths import GOLDEN
from helpers.photos import noise
from helpers.runs import CPU, contents, expect_exit
from helpers.stopping import in_a_child, in_a_pipe, status_of

import checkpoint
import evaluation
import search
from common import terminal
from common.errors import InputError
from encoders import folder, hub
from fne_loss import false_negative_posterior
from metrics.embeddings import gaussians_from_statistics
from searching import encoding

RELEASED = GOLDEN / "released_checkpoint"
ENCODERS = ["--image_encoder", str(RELEASED / "image_encoder"),
            "--text_encoder", str(RELEASED / "text_encoder")]
QUERY = "a small red circle"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone; --quiet of an earlier test has no effect."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(terminal, "quiet", False)
    return tmp_path / "cache"


@pytest.fixture
def photos(data, tmp_path):
    return shutil.copytree(data / "images", tmp_path / "photos")


@pytest.fixture
def find(capsys):
    """Run search.py, and return its results, read from json, and its standard error."""
    def run(model, *words):
        capsys.readouterr()
        search.main([str(model), *map(str, words), "--json", "--workers", "0", *CPU])
        output = capsys.readouterr()
        return json.loads(output.out), output.err

    return run


@pytest.fixture
def encoded(monkeypatch):
    """The names of all photos that are decoded for the index, as a list that grows."""
    names, load_photo = [], encoding.load_photo

    def recording(path, **how):
        names.append(path.name)
        return load_photo(path, **how)

    monkeypatch.setattr(encoding, "load_photo", recording)
    return names


def listed(found, query=0):
    """Return the names of the photos that were found for a query."""
    return [Path(result["path"]).name for result in found["queries"][query]["results"]]


# ------------------------------------------------------------------------------------ what is found


@pytest.fixture(scope="module")
def embedded(finished, data, tmp_path_factory):
    """Embeddings of the test split, by evaluation.py."""
    path = tmp_path_factory.mktemp("embeddings") / "x.npz"
    evaluation.main([str(finished / "model_best.pth.tar"), "--data_path", str(data), "--workers",
                     "0", *CPU, "--save_embeddings", str(path)])
    return np.load(path)


@pytest.mark.parametrize("kind", ["checkpoint", "folder", "hub"])
def test_it_finds_what_evaluation_ranks_first(find, kind, finished, exported, data, tmp_path,
                                              embedded, monkeypatch):
    """For every caption of the test split, with a checkpoint, a folder and a name of the Hub."""
    model = {"checkpoint": finished / "model_best.pth.tar", "folder": exported,
             "hub": "somebody/model"}[kind]
    monkeypatch.setattr(hub, "hub_error", lambda: None)
    monkeypatch.setattr(folder, "model_file", lambda name, file: exported / file)
    monkeypatch.setattr(folder, "snapshot_download", lambda name, **settings: str(exported))
    (tmp_path / "test").mkdir()
    for name in embedded["images"]:
        shutil.copy(data / name, tmp_path / "test")
    texts = [str(text) for text in embedded["captions"]]
    found, _ = find(model, *texts, "--photos", tmp_path / "test", "--top", "8")
    similarity = embedded["text_embeds"].astype(float) @ embedded["image_embeds"].astype(float).T
    names = [Path(str(name)).name for name in embedded["images"]]
    for number, row in enumerate(similarity):
        scores = [result["score"] for result in found["queries"][number]["results"]]
        assert scores == sorted(scores, reverse=True)
        by_name = dict(zip(names, row))
        assert scores == pytest.approx([by_name[name] for name in listed(found, number)], abs=1e-5)
        assert scores == pytest.approx(sorted(row, reverse=True), abs=1e-5)


def test_a_released_checkpoint_searches_too(find, photos):
    found, _ = find(RELEASED / "model_best.pth.tar", QUERY, "--photos", photos, *ENCODERS)
    assert len(listed(found)) == 10
    model = checkpoint.load_released(RELEASED / "model_best.pth.tar", ENCODERS[1], ENCODERS[3])
    assert found["queries"][0]["results"][0]["score"] <= 1 and model.embed_size


def test_a_photo_finds_itself_and_its_copy_first(find, photos, exported):
    shutil.copy(photos / "test_00003.png", photos / "zz_copy.png")
    found, _ = find(exported, "--photos", photos, "--like", photos / "test_00003.png")
    assert listed(found)[:2] == ["test_00003.png", "zz_copy.png"]
    scores = [result["score"] for result in found["queries"][0]["results"]]
    assert scores[0] == scores[1] == pytest.approx(1, abs=1e-6)


def test_sentence_and_photo_together_are_between_the_two(find, photos, exported):
    """The score of a sum of unit vectors is the sum of both scores over its length."""
    like = ["--like", photos / "test_00003.png"]
    both, text, photo = (
        {Path(result["path"]).name: result["score"]
         for result in find(exported, *words, "--photos", photos, "--top", "100")[0][
             "queries"][0]["results"]}
        for words in ([QUERY, *like], [QUERY], like))
    ratios = [(text[name] + photo[name]) / both[name] for name in both]
    assert ratios == pytest.approx([ratios[0]] * len(both), rel=1e-3) and ratios[0] < 2


def test_equal_photos_come_by_name(find, tmp_path, exported):
    for name in "c.png", "a.png", "b/a.png":
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        noise().save(tmp_path / "photos" / name)
    found, _ = find(exported, QUERY, "--photos", tmp_path / "photos")
    paths = [result["path"] for result in found["queries"][0]["results"]]
    assert [os.path.relpath(path, tmp_path / "photos") for path in paths] == [
        "a.png", "b/a.png", "c.png"]


def test_captions_for_a_photo(find, exported, embedded, data, tmp_path):
    """The other direction finds what evaluation.py ranks first."""
    lines = list(dict.fromkeys(map(str, embedded["captions"])))
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    photo = data / str(embedded["images"][2])
    for words in ([photo], ["--like", photo]):
        found, _ = find(exported, *words, "--captions", tmp_path / "captions.txt", "--top", "5")
        [query] = found["queries"]
        scores = {str(text): float(score) for text, score in zip(
            embedded["captions"], embedded["text_embeds"] @ embedded["image_embeds"][2])}
        assert [result["score"] for result in query["results"]] == pytest.approx(
            sorted(scores.values(), reverse=True)[:5], abs=1e-5)
        assert all(scores[result["caption"]] == pytest.approx(result["score"], abs=1e-5)
                   for result in query["results"])


def test_the_posterior_is_that_of_the_models_statistics(find, exported, photos, tmp_path):
    """Of the folder's config.json; prior and margin are those of its options."""
    model = shutil.copytree(exported, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    statistics = [[300, 0.0, 3.0], [600, -0.15, 1.5]]
    config["about"]["statistics"] = statistics
    config["about"]["options"] |= {"prior": 0.2, "margin": 0.1}
    (model / "config.json").write_text(json.dumps(config))
    found, told = find(model, "a red circle", "--photos", photos, "--posterior", "--top", "100")
    results = found["queries"][0]["results"]
    scores = torch.tensor([result["score"] for result in results], dtype=torch.float64)
    wanted = false_negative_posterior(scores, *gaussians_from_statistics(np.array(statistics)), 0.2)
    assert [result["posterior"] for result in results] == [
        pytest.approx(value) if score > -0.1 else None
        for value, score in zip(wanted.tolist(), scores.tolist())]
    assert "300 confident pairs" in told and "not calibrated" in found["posterior"]


# ------------------------------------------------------------------------------------- the index


def test_a_second_search_encodes_only_what_is_new(find, photos, exported, encoded, cache):
    find(exported, QUERY, "--photos", photos)
    assert sorted(encoded) == sorted(path.name for path in photos.iterdir())
    encoded.clear()
    first, _ = find(exported, QUERY, "--photos", photos)
    assert encoded == []
    noise(seed=9).save(photos / "new.png")
    os.utime(photos / "test_00001.png", ns=(1, 1))
    (photos / "test_00002.png").unlink()
    found, told = find(exported, QUERY, "--photos", photos, "--top", "1000")
    assert sorted(encoded) == ["new.png", "test_00001.png"] and "encoded 2 photos" in told
    assert "new.png" in listed(found) and "test_00002.png" not in listed(found)
    assert not {path.name for path in photos.rglob("*")} - {*listed(found)}
    assert [path.name for path in cache.iterdir()] == ["fne-search"]
    assert found["index"].startswith(str(cache)) and first["index"] == found["index"]


def test_checkpoint_and_export_share_an_index_another_model_does_not(find, photos, finished,
                                                                     exported, encoded):
    find(exported, QUERY, "--photos", photos)
    encoded.clear()
    found, _ = find(finished / "model_best.pth.tar", QUERY, "--photos", photos)
    assert encoded == []
    other, _ = find(RELEASED / "model_best.pth.tar", QUERY, "--photos", photos, *ENCODERS)
    assert len(encoded) == len(list(photos.iterdir())) and other["index"] != found["index"]


def test_the_index_may_be_named_and_lie_among_the_photos(find, photos, exported, encoded):
    place = photos / "own.index"
    find(exported, QUERY, "--photos", photos, "--index", place)
    encoded.clear()
    found, _ = find(exported, QUERY, "--photos", photos, "--index", place)
    assert encoded == [] and found["index"] == str(place) and place.is_file()


def test_with_as_is_the_folder_is_not_read(find, photos, exported, encoded):
    before, _ = find(exported, QUERY, "--photos", photos)
    encoded.clear()
    for path in photos.iterdir():
        path.unlink()
    after, _ = find(exported, QUERY, "--photos", photos, "--as_is")
    assert after == before and encoded == []


def test_a_broken_photo_is_named_once_and_skipped(find, photos, exported, encoded):
    (photos / "a.jpg").write_bytes(b"no photo")
    _, told = find(exported, QUERY, "--photos", photos)
    assert told.count("warning: photo") == 1 and "a.jpg" in told
    encoded.clear()
    _, told = find(exported, QUERY, "--photos", photos)
    assert encoded == [] and "warning" not in told and "1 photos that cannot be read" in told


def test_names_of_any_bytes_are_found_and_shown(photos, exported, capsys):
    for path in photos.iterdir():
        path.unlink()
    name = os.fsdecode(b"a\xff\n\x1b[31m <b>.png")
    noise().save(photos / name)
    for more in ([], ["--html", str(photos.parent / "x.html")]):
        search.main([str(exported), QUERY, "--photos", str(photos), "--workers", "0", *CPU, *more])
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and out.endswith("a\\udcff\\n\\x1b[31m <b>.png\n")
    assert "%FF%0A%1B%5B31m%20%3Cb%3E.png" in (photos.parent / "x.html").read_text()


def test_after_sigterm_the_next_search_goes_on(photos, exported, tmp_path, monkeypatch, encoded):
    """What the stopped search has encoded is in its index."""
    load_photo = encoding.load_photo

    def stopping(path, **how):
        if path.name == "test_00005.png":
            os.kill(os.getpid(), signal.SIGTERM)
        return load_photo(path, **how)

    def stopped_search():
        monkeypatch.setattr(encoding, "load_photo", stopping)
        search.main(arguments)

    arguments = [str(exported), QUERY, "--photos", str(photos), "--index", str(tmp_path / "index"),
                 "--batch_size_test", "2", "--workers", "0", *CPU]
    assert status_of(in_a_child(stopped_search)) == 143
    search.main(arguments)
    assert 0 < len(encoded) < len(list(photos.iterdir()))


def test_an_index_with_spoilt_embeddings_is_made_anew_once(photos, exported, tmp_path, capsys, find,
                                                           encoded):
    """With --as_is nothing is made, and nothing else said."""
    arguments = [QUERY, "--photos", photos, "--index", tmp_path / "index"]
    before, _ = find(exported, *arguments)
    content = bytearray((tmp_path / "index").read_bytes())
    row = content.index(b"test_00000.png") - 4 * 24
    content[row - 400 : row] = b"\xff" * 400  # NaN
    (tmp_path / "index").write_bytes(content)
    told = expect_exit([str(exported), *map(str, arguments), "--as_is", *CPU], 2, capsys,
                       ["--as_is", f"--index {tmp_path / 'index'}", "damaged"], search.main)
    assert "made anew" not in told and (tmp_path / "index").read_bytes() == content
    encoded.clear()
    after, told = find(exported, *arguments)
    assert after == before and len(encoded) == len(list(photos.iterdir()))
    assert told.count(f"warning: --index {tmp_path / 'index'}") == 1 and "made anew" in told


def test_with_as_is_no_link_leads_out_of_the_folder(photos, exported, tmp_path, capsys, find):
    """Neither that of a photo nor that of a folder, which other photos may have become since."""
    (photos / "deep").mkdir()
    noise().save(photos / "deep" / "x.png")
    arguments = [QUERY, "--photos", photos, "--index", tmp_path / "index", "--top", "1000"]
    before, _ = find(exported, *arguments)
    (photos / "deep").rename(tmp_path / "elsewhere")
    assert find(exported, *arguments, "--as_is")[0] == before
    (photos / "deep").symlink_to(tmp_path / "elsewhere")
    page = tmp_path / "x.html"
    told = expect_exit([str(exported), *map(str, arguments), "--as_is", "--html", str(page),
                        "--quiet", *CPU],
                       2, capsys, ["--as_is", "deep/x.png", "--follow_links"], search.main)
    assert "elsewhere" in told and not page.exists()
    assert find(exported, *arguments, "--as_is", "--follow_links")[0] == before


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("factor", [0, 1e38, float("nan")])
def test_a_model_without_embeddings_is_told_in_a_line(photos, exported, tmp_path, capsys, side,
                                                      factor):
    """It would give every photo the same score."""
    model = shutil.copytree(exported, tmp_path / "model")
    weights = model / f"{side}_2_Dense" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: value * factor for name, value in tensors.items()}, weights,
                                {"format": "pt"})
    expect_exit([str(model), QUERY, "--photos", str(photos), "--workers", "0", *CPU], 2, capsys,
                ["model"], search.main)


def test_photos_that_may_not_be_read_now_are_counted(photos, exported, capsys, monkeypatch):
    """As in a folder without the permission to open what is in it."""
    def refuse(path, **how):
        raise InputError(f"photo {path} cannot be decoded") from PermissionError(13, "denied")

    monkeypatch.setattr(encoding, "load_photo", refuse)
    count = len(list(photos.iterdir()))
    told = expect_exit([str(exported), QUERY, "--photos", str(photos), "--workers", "0", *CPU], 2,
                       capsys, [f"--photos {photos}"], search.main, count + 2)
    assert f"none of its {count} photos" in told


# ------------------------------------------------------------------------------------- which model


def test_without_a_model_the_one_that_searched_the_folder_last_is_taken(find, photos, exported,
                                                                        tmp_path, monkeypatch):
    """From any working folder, with the encoders that a checkpoint needs, and through a link."""
    first, _ = find(exported, QUERY, "--photos", photos)
    again, told = find(QUERY, "--photos", photos)
    assert again == first and f"model: {exported}" in told
    monkeypatch.chdir(RELEASED.parent)
    other, _ = find(Path(RELEASED.name, "model_best.pth.tar"), QUERY, "--photos", photos, *ENCODERS)
    assert other["queries"] != first["queries"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    last, _ = find(QUERY, "--photos", "link")
    assert [result["score"] for result in last["queries"][0]["results"]] == (
        [result["score"] for result in other["queries"][0]["results"]])
    assert find("--photos", photos, "--like", photos / "val_00000.png")[0]["model"] == last["model"]


@pytest.mark.parametrize("words", [["dogs"], ["dogs play", "M/x y"], ["-"], ["a / b"]])
def test_words_that_name_no_model_are_queries(find, photos, exported, monkeypatch, words):
    find(exported, QUERY, "--photos", photos)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"dogs\n")))
    found, _ = find(*words, "--photos", photos)
    wanted = ["dogs"] if words == ["-"] else words
    assert [query["text"] for query in found["queries"]] == wanted


def test_with_a_flag_for_the_model_all_words_are_queries(find, photos, exported, monkeypatch):
    monkeypatch.chdir(photos.parent)
    found, _ = find("photos", "a/b", "--photos", photos, "--model", exported)
    assert [query["text"] for query in found["queries"]] == ["photos", "a/b"]
    Path("c.txt").write_text("a red circle\n")
    found, _ = find(photos / "val_00000.png", "--captions", "c.txt", "--model", exported)
    [query] = found["queries"]
    assert query["results"][0]["caption"] == "a red circle"


@pytest.mark.parametrize("words, named", [
    (["dogs", "--photos", "P"], ["'dogs'", "--photos P", "--model"]),
    (["--photos", "P", "--like", "P/val_00000.png"], ["--photos P", "--model"]),
    (["P", "x", "--photos", "P"], ["P"]), (["c.txt", "x", "--photos", "P"], ["c.txt"]),
    (["gone/model", "x", "--photos", "P"], ["gone/model"]),
    (["gone.pth.tar", "x", "--photos", "P"], ["gone.pth.tar"]),
    (["--captions", "c.txt"], ["photo"]), (["--photos", "P", "--serve", "0"], ["--model"]),
    (["x", "--model", "gone/model", "--photos", "P"], ["gone"]),
    (["x", "--model", "", "--photos", "P"], ["."])])
def test_a_model_that_is_not_known_is_told_in_a_line(photos, tmp_path, capsys, monkeypatch, offline,
                                                     words, named):
    monkeypatch.chdir(tmp_path)
    photos.rename("P")
    Path("c.txt").write_text("a red circle\n")
    expect_exit([*words, *CPU], 2, capsys, named, search.main)


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"{}", b'{"format": "fne-search-model-2"}', b"\xff", b"[" * 9000,
    b'{"format": "fne-search-model-1", "photos": PHOTOS}',
    b'{"format": "fne-search-model-1", "photos": PHOTOS, "model": 5, "image_encoder": null, '
    b'"text_encoder": null}',
    b'{"format": "fne-search-model-1", "photos": PHOTOS, "model": "x", "more": 5}',
    *(b'{"format": "fne-search-model-1", "photos": PHOTOS, "model": "%s", "image_encoder": null, '
      b'"text_encoder": null}' % name for name in (b"x" * 5000, b"\\u0000", b"\\ud800"))])
def test_a_damaged_memory_of_the_model_is_told_and_replaced(find, photos, exported, capsys, cache,
                                                            content):
    find(exported, QUERY, "--photos", photos)
    [place] = (cache / "fne-search").glob("*.model.json")
    whole = place.read_bytes()
    place.write_bytes(content.replace(b"PHOTOS", json.dumps(str(photos)).encode()))
    told = expect_exit([QUERY, "--photos", str(photos), *CPU], 2, capsys,
                       ["--photos", "--model"], search.main, 2)
    assert told.startswith("warning: ")
    find(exported, QUERY, "--photos", photos)
    assert place.read_bytes() == whole


def test_where_nothing_can_be_kept_the_search_is_done(find, photos, exported, tmp_path,
                                                      monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found, _ = find(exported, QUERY, "--photos", photos, "--index", tmp_path / "index")
    assert found["queries"][0]["results"]


# ----------------------------------------------------------------------------------- what is shown


def test_text_has_a_line_for_each_result(photos, exported, capsys, monkeypatch):
    words = [str(exported), "--photos", str(photos), "--workers", "0", *CPU, "--top", "2"]
    search.main([*words, QUERY])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(rf"[ -]\d\.\d{{4}}  {re.escape(str(photos))}/\w+\.png", line)
               for line in lines)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a star\na red cross\n")))
    search.main([*words, QUERY, "-", "--quiet"])
    output = capsys.readouterr()
    blocks = output.out.strip("\n").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [QUERY, "a star", "a red cross"]
    assert blocks[0].splitlines()[1:] == lines and output.err == ""


def test_a_closed_pipe_ends_the_command_without_an_error(photos, exported):
    """As `search.py ... | head -1` does."""
    child, out, err = in_a_pipe(lambda: search.main(
        [str(exported), *[QUERY] * 3, "--photos", str(photos), "--workers", "0", *CPU]))
    out.close()
    err.close()
    assert status_of(child) == 0


def test_a_page_and_json_at_once(find, photos, exported, tmp_path):
    found, _ = find(exported, QUERY, "<b>", "--photos", photos, "--html", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert text.count("<img") == 20 and "&lt;b&gt;" in text and "<b>.png" not in text
    assert all(Path(result["path"]).as_uri() in text for query in found["queries"]
               for result in query["results"])


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("words, named", [
    ([], ["--photos", "--captions"]),
    (["x", "--photos", "P", "--captions", "c.txt"], ["--photos", "--captions"]),
    (["--photos", "P"], ["--like"]),
    (["--captions", "c.txt"], ["photo"]),
    (["", "--photos", "P"], ["query ''"]),
    (["?!", "--photos", "P"], ["query '?!'"]),
    (["x\udcff", "--photos", "P"], ["query", "UTF-8"]),
    (["-", "-", "--photos", "P"], ["'-'"]),
    (["-", "--captions", "-"], ["'-'"]),
    (["x", "--photos", "nothing"], ["--photos nothing"]),
    (["x", "--photos", "c.txt"], ["--photos c.txt"]),
    (["x", "--photos", "empty"], ["--photos empty"]),
    (["x", "--photos", "P\0"], ["--photos P"]),
    (["x", "--photos", "P", "--top", "0"], ["--top 0"]),
    (["x", "--photos", "P", "--top", "-1"], ["--top -1"]),
    (["x", "--photos", "P", "--top", "1" + "0" * 30], ["--top 1000"]),
    (["x", "--photos", "P", "--top", "many"], ["--top"]),
    (["x", "--photos", "P", "--workers", "-1"], ["--workers -1"]),
    (["x", "--photos", "P", "--batch_size_test", "0"], ["--batch_size_test 0"]),
    (["x", "--photos", "P", "--index", "P"], ["--index P"]),
    (["x", "--photos", "P", "--index", "c.txt"], ["--index c.txt"]),
    (["x", "--photos", "P", "--index", "P/test_00000.png"], ["--index P/test_00000.png"]),
    (["x", "--photos", "P", "--index", "c.txt/x"], ["--index c.txt/x"]),
    (["x", "--photos", "P", "--html", "c.txt"], ["--html c.txt"]),
    (["x", "--photos", "P", "--html", "y", "--index", "y"], ["--index y"]),
    (["x", "--photos", "P", "--as_is"], ["--as_is"]),
    (["x", "--photos", "P", "--like", "c.txt"], ["photo c.txt"]),
    (["x", "--photos", "P", "--like", "gone.jpg"], ["gone.jpg"]),
    (["x", "--photos", "P", "--like", "P/test_00000.png", "--posterior"], ["--posterior"]),
    (["c.txt", "--captions", "c.txt"], ["photo c.txt"]),
    (["P/test_00000.png", "--captions", "gone.txt"], ["gone.txt"]),
    (["P/test_00000.png", "--captions", "empty.txt"], ["--captions empty.txt"]),
    (["P/test_00000.png", "--captions", "c.txt", "--index", "y"], ["--index", "--photos"]),
    (["P/test_00000.png", "--captions", "c.txt", "--faiss"], ["--faiss", "--photos"]),
    (["x", "--nonsense"], ["--nonsense"]),
    (["x", "--photos", "P", "--model"], ["--model"])])
def test_a_mistake_is_one_line(exported, photos, tmp_path, capsys, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    photos.rename("P")
    Path("empty").mkdir()
    Path("c.txt").write_text("a red circle\n")
    Path("empty.txt").touch()
    before = contents(tmp_path)
    expect_exit([str(exported), "--workers", "0", *CPU, *words], 2, capsys, named, search.main)
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after.keys() - before.keys() if "cache" not in path.parts]


@pytest.mark.parametrize("model", ["nothing/at/all", "nothing", "photos", "text"])
def test_a_model_that_is_none_is_named_in_one_line(tmp_path, photos, capsys, monkeypatch, offline,
                                                   model):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("text")
    expect_exit([model, "x", "--photos", "photos"], 2, capsys, [model], search.main)


def test_a_model_without_statistics_has_no_posterior(photos, capsys):
    expect_exit([str(RELEASED / "model_best.pth.tar"), QUERY, "--photos", str(photos),
                 "--posterior", *ENCODERS, *CPU], 2, capsys,
                ["--posterior", "model_best.pth.tar"], search.main)


def test_a_folder_of_broken_photos_alone_is_named(exported, tmp_path, capsys):
    (tmp_path / "P").mkdir()
    (tmp_path / "P" / "a.jpg").write_bytes(b"none")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        search.main([str(exported), QUERY, "--photos", str(tmp_path / "P"), "--workers", "0", *CPU])
    assert ended.value.code == 2
    assert f"--photos {tmp_path / 'P'}" in capsys.readouterr().err.splitlines()[-1]


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_encoded(
        exported, photos, tmp_path, capsys, monkeypatch, encoded):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    expect_exit([str(exported), QUERY, "--photos", str(photos), *CPU], 2, capsys,
                ["--index", str(tmp_path / "file")], search.main)
    assert encoded == []
