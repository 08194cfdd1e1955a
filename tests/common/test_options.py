"""Flags: names, published defaults, presets, layering, refusals; and that none of them is inert."""

import re
import typing
from pathlib import Path

import pytest
from helpers.paths import ROOT

from common.errors import InputError
from common.options import (
    CHECKING,
    PRESETS,
    SCORING,
    TRAINING,
    Brought,
    CheckingOptions,
    ScoringOptions,
    TrainOptions,
    build_parser,
    check,
    parse,
    parse_checking,
    parse_scoring,
)

PUBLISHED = dict(
    image_res=384, batch_size_train=32, batch_size_test=32, margin=0.2, num_epochs=25,
    embed_size=0, grad_clip=2.0, learning_rate=2e-5, workers=4, log_step=10, val_times=3,
    queue_size=8224, momentum=0.995, nums_right_sims=200, tau=0.5, prior=1e-4,
    posterior_floor=1e-3, warmup_epochs=1, seed=3407, max_words=30, max_tokens=30,
    image_encoder="google/vit-base-patch16-384", text_encoder="bert-base-uncased",
    lr_milestones=[5, 15], image_stats="auto", image_pooling="auto", text_pooling="auto",
    caption_prefix="", augment="published",
    freeze=None, loss="fne", max_violation=False, dataset="flickr", resume=None, test=False,
    json_path=None, device="auto")


def flags(groups=TRAINING):
    """Destination and flags of every option."""
    return {action.dest: action.option_strings for action in build_parser("", groups, {})._actions
            if action.dest != "help"}


def options(*argv):
    return parse("", ["--data_path", "photos", *argv])[0]


# ------------------------------------------------------------------------------- defaults, presets


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_setting(name):
    assert f"--{name}" in flags()[name]
    value = getattr(options(), name)
    assert value == PUBLISHED[name] and type(value) is type(PUBLISHED[name])


@pytest.mark.parametrize("dataset", PRESETS)
def test_a_preset_changes_what_it_names_and_nothing_else(dataset):
    """With real photos the published model stays: Flickr30K, COCO and a user's own data have
    nothing to change."""
    plain, preset = vars(options()), vars(options("--dataset", dataset))
    changed = {name for name in plain if plain[name] != preset[name]}
    given = {"data_path"} if "data_path" in PRESETS[dataset] else set()  # the command line's
    own = {"dataset", "logger_name"} if dataset != "flickr" else set()
    assert changed == set(PRESETS[dataset]) - given | own
    assert all(preset[name] == PRESETS[dataset][name] for name in changed - own)
    assert PRESETS[dataset].keys() <= plain.keys()
    if dataset in ("flickr", "mscoco", "custom"):
        assert not PRESETS[dataset]


@pytest.mark.parametrize("dataset", PRESETS)
def test_presets_can_run(dataset):
    argv = [] if "data_path" in PRESETS[dataset] else ["--data_path", "photos"]
    check(parse("", ["--dataset", dataset, *argv])[0])


def test_the_command_line_overrides_a_preset():
    assert PRESETS["shapes"]["image_res"] != 96 and "queue_size" in PRESETS["shapes"]
    got = options("--image_res", "96", "--dataset", "shapes")
    assert (got.image_res, got.data_path) == (96, Path("photos"))
    assert got.queue_size == PRESETS["shapes"]["queue_size"]
    assert options("--dataset", "shapes", "--queue_size", "8224").queue_size == 8224


@pytest.mark.parametrize(("argv", "given"), [
    ([], set()), (["--margin", "0.2"], {"margin"}), (["--image_root", "x"], {"data_path"}),
    (["--max_violation", "--tau=.5"], {"max_violation", "tau"}),
    (["--dataset", "flickr"], {"dataset"}), (["--lr_milestones"], {"lr_milestones"}),
    (["--dataset", "shapes", "--image_res", "64"], {"dataset", "image_res"})])
def test_what_the_command_line_gave_is_known_even_where_it_is_the_default(argv, given):
    assert parse("", argv)[1] == given


@pytest.mark.parametrize("flag", ["--data_path", "--image_root"])
def test_the_photos_have_two_names(flag):
    assert parse("", [flag, "photos"])[0].data_path == Path("photos")


@pytest.mark.parametrize(("argv", "folder"), [
    ([], "runs/flickr_FNE"), (["--dataset", "mscoco", "--loss", "triplet"], "runs/mscoco_TRIPLET"),
    (["--logger_name", "x"], "x")])
def test_the_folder_of_a_run(argv, folder):
    assert options(*argv).logger_name == Path(folder)


@pytest.mark.parametrize(("argv", "folder"), [
    ([], "data/shapes"), (["--ambiguity", "3"], "data/shapes"),
    (["--ambiguity", "10"], "data/shapes_10"), (["--ambiguity", "0.5"], "data/shapes_0.5"),
    (["--ambiguity", "10", "--data_path", "x"], "x")])
def test_each_ambiguity_has_its_folder(argv, folder):
    assert parse("", ["--dataset", "shapes", *argv])[0].data_path == Path(folder)
    assert parse_checking("", ["--dataset", "shapes", *argv]).data_path == Path(folder)


def test_only_shapes_has_a_dial():
    with pytest.raises(InputError, match="--ambiguity 10: --dataset flickr has the captions"):
        check(options("--ambiguity", "10"))
    check(options("--ambiguity", "10", "--dataset", "shapes"))


def test_scoring_takes_a_checkpoint_and_knows_every_option():
    got, given = parse_scoring("", ["x.tar", "--image_root", "photos", "--split", "val"])
    assert given == {"checkpoint", "data_path", "split"}
    assert (got.checkpoint, got.data_path, got.split, got.test) == (
        Path("x.tar"), Path("photos"), "val", True)
    assert parse_scoring("", ["x.tar"])[0].split == "test"
    assert flags().keys() <= vars(got).keys()
    check(got)


# ----------------------------------------------------------------------------------------- refusals

BAD = {name: values for names, values in (
    (("image_res", "max_words", "max_tokens", "batch_size_train", "batch_size_test", "num_epochs",
      "queue_size", "log_step"), ["0", "-1"]),
    (("embed_size", "warmup_epochs", "easy_epochs", "nums_right_sims", "workers", "val_times",
      "val_step", "lr_update", "lr_warmup", "seed", "save_step", "max_bad_photos"), ["-1"]),
    (("grad_clip", "margin", "tau", "posterior_floor", "learning_rate"), ["-0.1", "inf", "nan"]),
    (("prior",), ["0", "1", "-0.1", "nan"]),
    (("momentum",), ["1", "1.5", "-0.1", "nan"])) for name in names}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_values_that_cannot_work_are_named(name, value):
    with pytest.raises(InputError, match=f"^--{name} {value}") as caught:
        check(options(f"--{name}={value}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("momentum", "0"), ("grad_clip", "0"), ("warmup_epochs", "0"), ("seed", "0"),
    ("queue_size", "32"), ("workers", "0"), ("posterior_floor", "0"), ("prior", "0.99")])
def test_values_at_the_border_work(name, value):
    check(options(f"--{name}", value))


def test_every_number_has_a_border():
    numbers = {action.dest for action in build_parser("", TRAINING, {})._actions
               if action.type in (int, float)}
    assert numbers == {*BAD, "lr_milestones"}


def test_the_bank_must_hold_a_batch():
    with pytest.raises(InputError, match="--queue_size 31: must hold a batch of 32"):
        check(options("--queue_size", "31"))
    check(options("--queue_size", "31", "--loss", "triplet"))


def test_the_photos_must_be_named():
    with pytest.raises(InputError, match="--data_path: name the folder"):
        check(parse("", [])[0])


@pytest.mark.parametrize("argv", [
    ["--batch_size", "8"], ["--image", "x"], ["--max_v"], ["--nonsense", "1"], ["--gpu", "0"],
    ["--dataset", "imagenet"], ["--loss", "other"], ["--image_res", "large"], ["--text_pooling"]])
def test_abbreviations_and_nonsense_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("", argv)
    assert caught.value.code == 2 and argv[0] in capsys.readouterr().err


# --------------------------------------------------------------------------------------- every flag


@pytest.mark.parametrize("groups", [TRAINING, SCORING])
def test_every_flag_has_help_that_prints(groups):
    parser = build_parser("A docstring.", groups, {})
    assert all(action.help for action in parser._actions)
    assert "A docstring." in parser.format_help()


def sources():
    """The program's own files, but for the one that defines the flags."""
    folders = ["", "common", "inputs", "encoders", "metrics", "training", "figures", "scripts"]
    paths = [path for folder in folders for path in (ROOT / folder).glob("*.py")]
    return [path.read_text() for path in paths if path.name != "options.py"]


@pytest.mark.parametrize("name", {**flags(), **flags(SCORING)})
def test_fidelity_note_7_no_flag_is_inert(name):
    """A file beside options.py reads it, other than to name it in a list."""
    reads = re.compile(rf"options\.{name}\b")
    assert any(reads.search(source) for source in sources())


# ------------------------------------------------------------------------------------ typed options


@pytest.mark.parametrize(("kind", "groups"), [
    (TrainOptions, TRAINING), (ScoringOptions, {*TRAINING, *SCORING}),
    (CheckingOptions, CHECKING)])
def test_every_flag_has_a_field_and_every_field_a_flag(kind, groups):
    brought = Brought.__annotations__.keys() if issubclass(kind, Brought) else set()
    assert typing.get_type_hints(kind).keys() - brought == flags(groups).keys()


@pytest.mark.parametrize(("kind", "options"), [
    (TrainOptions, options()),
    (TrainOptions, options("--dataset", "shapes", "--freeze", "text", "--resume", "auto")),
    (ScoringOptions, parse_scoring("", ["x.tar", "--data_path", "photos", "--output", "x"])[0]),
    (CheckingOptions, parse_checking("", ["--data_path", "photos", "--json_path", "x"]))])
def test_values_are_of_their_fields_types(kind, options):
    assert type(options) is kind
    for name, hint in typing.get_type_hints(kind).items():
        value = getattr(options, name)
        if hint == list[int]:
            assert isinstance(value, list) and all(isinstance(item, int) for item in value)
        elif name != "logger_name" or value is not None:  # which scoring leaves open
            assert isinstance(value, hint), name


@pytest.mark.parametrize("name", ["max_violation", "grad_checkpointing", "compile", "all_captions"])
def test_what_a_checkpoint_has_switched_on_can_be_switched_off(name):
    on, off = (parse("", ["--dataset", "shapes", f"--{prefix}{name}"]) for prefix in ("", "no_"))
    assert getattr(on[0], name) is True and getattr(off[0], name) is False
    assert name in on[1] and name in off[1]
    assert getattr(parse("", ["--dataset", "shapes"])[0], name) is False


def test_figures_can_be_switched_on_again():
    options, given = parse("", ["--dataset", "shapes", "--figures"])
    assert options.no_figures is False and "no_figures" in given
    assert parse("", ["--dataset", "shapes", "--no_figures"])[0].no_figures is True
