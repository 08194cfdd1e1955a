"""TensorBoard and the terminal: what they show of a run, and that this changes nothing."""

import io
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import assert_same, command, drawing, final_state
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from common import errors, terminal
from figures import galleries, tensorboard
from figures.picks import fixed_choice
from figures.tensorboard import Board, validation_lines
from training.objectives import fne

SIDES = "i2t", "t2i"


@pytest.fixture(autouse=True)
def not_quiet():
    """--quiet of one test has no effect on the next."""
    yield
    terminal.quiet = False


def logs(folder):
    """Return an event file's accumulator, its tags, and its pictures by tag and step."""
    sizes = {"images": 0, "tensors": 0, "scalars": 0}
    accumulator = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    tags = accumulator.Tags()
    pictures = {tag: {event.step: event.encoded_image_string for event in accumulator.Images(tag)}
                for tag in tags["images"]}
    return accumulator, tags, pictures


def final(folder):
    """Return the final state of a run, but for --quiet."""
    state = final_state(folder)
    del state["options"]["quiet"]
    return state


@pytest.fixture(scope="module")
def drawn(data, tmp_path_factory):
    """A finished run with figures: its folder, and what it wrote to both streams."""
    folder = tmp_path_factory.mktemp("runs") / "drawn"
    with pytest.MonkeyPatch.context() as patch:
        output = io.StringIO(), io.StringIO()
        patch.setattr("sys.stdout", output[0])
        patch.setattr("sys.stderr", output[1])
        train.main(drawing(data, folder))
    return SimpleNamespace(folder=folder, out=output[0].getvalue(), err=output[1].getvalue())


def test_training_is_the_same_to_the_bit_without_figures(data, drawn, tmp_path, monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("drawn in spite of --no_figures")

    monkeypatch.setattr(fne, "count_similarities", forbidden)
    monkeypatch.setattr(Board, "write_figures", forbidden)
    monkeypatch.setattr(galleries, "picks", forbidden)
    train.main(command(data, tmp_path, "--quiet"))
    assert_same(final(tmp_path), final(drawn.folder))
    assert logs(tmp_path)[1]["images"] == []


def test_each_validation_has_its_pictures(drawn):
    _, _, pictures = logs(drawn.folder)
    validated = [0, 3, 6, 7, 10, 13, 14, 17, 20, 21]
    fne = [step for step in validated if step > 7]  # the bank is empty in the warm-up
    steps = {tag: list(found) for tag, found in pictures.items()}
    # So small a run has epochs without two confident pairs, and so without a spread.
    assert steps["distributions"] and set(steps.pop("distributions")) <= set(validated[1:])
    assert steps == {**{f"negatives/{side}": fne for side in SIDES},
                     **{f"retrieval/{side}": validated for side in SIDES}}
    for tag, found in pictures.items():
        for encoded in found.values():
            image = Image.open(io.BytesIO(encoded))
            assert image.format == ("PNG" if tag == "distributions" else "JPEG")
            assert min(image.size) > 300 and len(encoded) < 120_000
    assert len(set(pictures["negatives/i2t"].values())) > 1


@pytest.mark.parametrize("loss", ["triplet", "infonce"])
def test_the_controls_have_no_bank_and_no_statistics_to_show(data, tmp_path, loss):
    train.main(drawing(data, tmp_path, "--loss", loss, "--num_epochs", "1", "--quiet"))
    assert logs(tmp_path)[2].keys() == {f"retrieval/{side}" for side in SIDES}


def test_the_histograms_are_of_this_epoch(data, tmp_path, monkeypatch):
    """At every validation they hold as many values as the statistics have taken."""
    seen = []
    write_figures = Board.write_figures

    def recording(self, *embeds):
        sampler = self.run.objective.sampler()
        seen.append((sampler.similarity_counts.sum(dim=1).tolist(), [
            int(getattr(sampler.criterion, name).count) for name in ("positive", "negative")]))
        return write_figures(self, *embeds)

    monkeypatch.setattr(Board, "write_figures", recording)
    train.main(drawing(data, tmp_path, "--num_epochs", "2", "--batch_size_train", "4", "--val_step",
                       "15", "--quiet"))
    before, *seen = seen
    assert before == ([0, 0], [0, 0])  # the first step
    assert len(seen) == 4 and all(counted == taken for counted, taken in seen)
    assert seen[0][0][0] < seen[1][0][0] and seen[2][0][0] < seen[1][0][0] + 3  # began anew


def test_frozen_features_serve_the_galleries(data, tmp_path, monkeypatch):
    """The features of a frozen encoder give the same embeddings as the photos themselves."""
    found = []
    embed_pairs = tensorboard.embed_pairs

    def with_and_without_features(run, *arguments):
        found.append(embed_pairs(run, *arguments))
        features, run.image_features = run.image_features, None
        found.append(embed_pairs(run, *arguments))
        run.image_features = features
        return found[-2]

    monkeypatch.setattr(tensorboard, "embed_pairs", with_and_without_features)
    train.main(drawing(data, tmp_path, "--freeze", "image", "--num_epochs", "2", "--quiet",
                       "--val_step", "7"))
    assert len(found) == 4  # online and momentum encoders, twice each
    for looked_up, encoded in zip(found[::2], found[1::2]):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(looked_up, encoded))


def test_galleries_of_a_run_with_a_teacher_draw_by_it(data, tmp_path, monkeypatch):
    """P(match) is that of the teacher, and what is above --match_bar is never drawn."""
    runs, found = [], []
    write_figures, picks = Board.write_figures, galleries.picks

    def of_run(self, *embeds):
        runs.append(self.run)
        return write_figures(self, *embeds)

    def recording(*arguments, **more):
        found.append((arguments, picks(*arguments, **more)))
        return found[-1][1]

    monkeypatch.setattr(Board, "write_figures", of_run)
    monkeypatch.setattr(galleries, "picks", recording)
    bar = 0.05
    train.main(drawing(data, tmp_path, "--num_epochs", "2", "--val_step", "7", "--quiet",
                       "--teacher", "captions:20", "--match_bar", str(bar)))
    teacher, seen, above = runs[0].teacher, 0, 0
    directions = [found[:1], found[1:]]  # one gallery of each direction, at the end
    for is_i2t, [(arguments, chosen)] in zip((True, False), directions):
        *_, image_ids, bank_ids, item_ids = arguments
        texts = fixed_choice(tensorboard.EXAMPLES, len(teacher.caption_embeds))
        for row, pick in enumerate(chosen):
            owners = torch.cat([image_ids, bank_ids])
            for candidate, item in enumerate(item_ids.tolist()):
                image, text = (int(image_ids[row]), item) if is_i2t else (item, texts[row])
                wanted = 0.0
                if item >= 0:
                    r = float(teacher.photo_embeds[image].float()
                              @ teacher.caption_embeds[text].float())
                    wanted = float(teacher.from_similarity(torch.tensor(r)))
                assert float(pick.posterior[candidate]) == pytest.approx(wanted, abs=1e-5)
                seen += 1
                above += wanted > bar and int(owners[candidate]) != int(image_ids[row])
            for candidate in [pick.drawn, *pick.hardest]:
                assert candidate is None or float(pick.posterior[candidate]) <= bar
    assert seen == 2 * tensorboard.EXAMPLES * (tensorboard.EXAMPLES + 40) and above


def test_an_unreadable_photo_ends_the_galleries_and_not_the_run(
        data, tmp_path, monkeypatch, capsys):
    def unreadable(photos, index):
        raise errors.InputError(f"photo {photos[index]} cannot be decoded")

    monkeypatch.setattr(tensorboard, "load_from", unreadable)
    train.main(drawing(data, tmp_path, "--num_epochs", "2", "--val_step", "7"))
    assert "step 14" in capsys.readouterr().out
    assert logs(tmp_path)[2].keys() == {"distributions"} | {f"retrieval/{side}" for side in SIDES}


def test_curves_are_grouped_and_times_are_split(drawn):
    accumulator, tags, _ = logs(drawn.folder)
    assert {tag.split("/")[0] for tag in tags["scalars"]} == {
        "train", "statistics", "bank", "val", "time"}
    parts = [f"time/{part}_ms" for part in ("data", "encoders", "loss", "backward")]
    assert [tag for tag in tags["scalars"] if tag.startswith("time/")] and not (
        set(parts) - set(tags["scalars"]))
    for tag in parts:
        events = accumulator.Scalars(tag)
        assert [event.step for event in events] == list(range(3, 22, 3))
        assert all(event.value > 0 for event in events)


def test_the_text_tab_holds_command_options_and_versions(drawn, monkeypatch):
    accumulator, tags, _ = logs(drawn.folder)
    text = {tag: accumulator.Tensors(tag)[0].tensor_proto.string_val[0].decode()
            for tag in tags["tensors"]}
    assert text.keys() == {f"run/{name}/text_summary"
                           for name in ("command", "options", "versions")}
    assert "| queue_size | `40` |" in text["run/options/text_summary"]
    assert f"| torch | {torch.__version__} |" in text["run/versions/text_summary"]
    monkeypatch.setenv("PATH", "")
    assert tensorboard.commit() == "unknown"


def test_without_a_terminal_there_are_lines_and_no_bars(drawn):
    assert drawn.err == ""
    lines = drawn.out.splitlines()
    first, last = "before the first step: ", "shapes test, "
    begin, end = ([line.startswith(word) for line in lines].index(True) for word in (first, last))
    steps = [line for line in lines[begin:end] if line.startswith((first, "epoch "))]
    changes = [line for line in steps if "from here on" in line]
    assert changes == ["epoch 2/3: from here on FNE"]
    steps.remove(*changes)
    places = [f"epoch {epoch}/3, step {step}/7: " for epoch in (1, 2, 3) for step in (3, 6, 7)]
    assert len(steps) == 10 and "\r" not in drawn.out
    assert all(line.startswith(place) and "rsum" in line
               for line, place in zip(steps, [first, *places], strict=True))
    recalls = [line for line in lines if line.startswith("  val R@1/5/10: ")]
    assert len(recalls) == 10 and end - begin == 21 and lines[0].startswith("data: shapes, ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_quiet_prints_the_results_alone(data, tmp_path, monkeypatch):
    screen = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", screen[0])
    monkeypatch.setattr("sys.stderr", screen[1])
    train.main(command(data, tmp_path, "--num_epochs", "2", "--quiet"))
    assert screen[0].getvalue().startswith("shapes test, ") and screen[1].getvalue() == ""


def test_a_terminal_has_one_bar_an_epoch_and_lines_above_it(data, tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", screen)
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    frames = screen.getvalue().split("\r")
    bars = [frame for frame in frames if frame.startswith("epoch ")]
    assert {bar[:9] for bar in bars} == {"epoch 1/2", "epoch 2/2"}
    assert "step/s" in bars[-1] and "<" in bars[-1] and "loss=0." in bars[-1]  # rate, time to go
    lines = [line.split("\r")[-1] for line in screen.getvalue().splitlines()]
    assert sum(line.startswith("before the first step: ") for line in lines) == 1
    assert sum(bool(re.match("epoch [12]/2, step [367]/7: .*rsum", line)) for line in lines) == 6
    assert sum(line.startswith("  val R@1/5/10: ") for line in lines) == 7


@pytest.mark.parametrize("best, change", [
    (-1.0, "(new best)"), (150.0, "(new best, +20.5)"), (180.0, "(-9.5 from best)"),
    (170.5, "(+0.0 from best)")])
def test_the_two_lines_of_a_validation(best, change):
    run = SimpleNamespace(global_step=30, position="epoch 3/10, step 4/13", best_rsum=best)
    metrics = {f"{side}_r{k}": float(k) for side in SIDES for k in (1, 5, 10)} | {"rsum": 170.5}
    lines = validation_lines(run, metrics, 0.25)
    assert lines == (f"epoch 3/10, step 4/13: loss 0.2500, rsum 170.5 {change}\n"
                     "  val R@1/5/10: i2t 1.0/5.0/10.0, t2i 1.0/5.0/10.0")
    assert max(map(len, lines.splitlines())) <= 80
    assert "loss" not in validation_lines(run, metrics, None)
