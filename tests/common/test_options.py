"""Flags: names, published defaults, presets, layering, refusals; and that none of them is inert."""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.paths import ROOT

import checkpoint
from common.errors import InputError
from common.flags import (
    check_values,
    flag_groups,
    flags_of,
    flags_to_repeat,
    names_from_checkpoint,
    option,
)
from common.options import (
    CheckingOptions,
    EncodingOptions,
    ExportOptions,
    ScoringOptions,
    SourceOptions,
    parse_checking,
    parse_export,
    parse_scoring,
)
from common.parser import build_parser
from common.presets import PRESETS, RECIPES
from training.objectives import OBJECTIVES, Entry
from training.objectives.options import FNEOptions, TripletOptions
from training.options import TrainOptions, build_train_parser, check, options_class, parse

COMMANDS = TrainOptions, ScoringOptions, CheckingOptions, ExportOptions
PUBLISHED = dict(
    recipe=None, optimizer="adam", weight_decay=0.0, lr_schedule="steps", lr_warmup=0,
    image_res=384, batch_size_train=32, batch_size_test=32, margin=0.2, num_epochs=25,
    embed_size=0, grad_clip=2.0, learning_rate=2e-5, workers=4, log_step=10, val_times=3,
    queue_size=8224, momentum=0.995, nums_right_sims=200, tau=0.5, prior=1e-4,
    posterior_floor=1e-3, warmup_epochs=1, seed=3407, max_words=30, max_tokens=30,
    image_encoder="google/vit-base-patch16-384", text_encoder="bert-base-uncased",
    lr_milestones=[5, 15], image_stats="auto", image_pooling="auto", text_pooling="auto",
    caption_prefix="", augment="published",
    freeze=None, loss="fne", max_violation=False, dataset="flickr", resume=None, test=False,
    json_path=None, device="auto")


FLAGS = flags_of(TrainOptions)
NUMBERS = {name: flag for name, flag in FLAGS.items() if flag.value_type in (int, float)}


def options(*argv):
    return parse("", ["--data_path", "photos", *argv])[0]


# ------------------------------------------------------------------------------- defaults, presets


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_setting(name):
    assert f"--{name}" in build_train_parser("")._option_string_actions
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


@pytest.mark.parametrize("dataset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_lies_over_a_preset_and_under_the_command_line(recipe, dataset):
    plain = vars(options("--dataset", dataset))
    got = vars(options("--dataset", dataset, "--recipe", recipe, "--num_epochs", "77"))
    wanted = plain | RECIPES[recipe] | {"recipe": recipe, "num_epochs": 77}
    wanted["logger_name"] = got["logger_name"]  # which follows from the loss
    assert got == wanted and RECIPES[recipe].keys() <= plain.keys()
    check(options("--dataset", dataset, "--recipe", recipe))


@pytest.mark.parametrize(("argv", "given"), [
    ([], set()), (["--margin", "0.2"], {"margin"}), (["--image_root", "x"], {"data_path"}),
    (["--max_violation", "--tau=.5"], {"max_violation", "tau"}),
    (["--dataset", "flickr"], {"dataset"}), (["--lr_milestones"], {"lr_milestones"}),
    (["--dataset", "shapes", "--image_res", "64"], {"dataset", "image_res"})])
def test_what_the_command_line_gave_is_known_even_where_it_is_the_default(argv, given):
    assert parse("", argv)[1] == given


def test_a_list_is_not_shared_between_options():
    options().lr_milestones.append(20)
    assert options().lr_milestones == PUBLISHED["lr_milestones"]


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


def test_the_prior_of_the_evidence_is_another_unless_it_is_given():
    shapes = "--dataset", "shapes", "--posterior", "evidence"
    assert options(*shapes).prior == options("--posterior", "evidence").prior == 0.01
    assert options(*shapes, "--prior", "0.03").prior == 0.03


def test_scoring_takes_a_checkpoint_and_no_option_of_training():
    got, given = parse_scoring("", ["x.tar", "--image_root", "photos", "--split", "val"])
    assert given == {"checkpoint", "data_path", "split"}
    assert (got.checkpoint, got.data_path, got.split) == (Path("x.tar"), Path("photos"), "val")
    got, given = parse_scoring("", [])
    assert (got.checkpoint, got.split, given) == (None, "test", set())
    assert vars(got).keys() & {"margin", "seed", "freeze", "prior", "logger_name"} == set()


def test_export_takes_a_checkpoint_and_a_folder(capsys):
    got = parse_export("", ["x.tar", "folder", "--onnx"])
    assert (got.checkpoint, got.out, got.dtype, got.onnx) == (
        Path("x.tar"), Path("folder"), "float32", True)
    with pytest.raises(SystemExit) as caught:
        parse_export("", ["x.tar"])
    assert caught.value.code == 2 and "out" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- refusals

def beyond(flag):
    """Values just outside a number's range, and what is no number."""
    step = 1 if flag.value_type is int else 1e-9
    ends = [flag.low is not None and flag.low - step, flag.high is not None and flag.high * 2,
            flag.above, flag.below]
    numbers = [] if flag.value_type is int else [math.nan, math.inf, -math.inf]
    return [end for end in ends if end is not None and end is not False] + numbers


@pytest.mark.parametrize(("name", "value"), [
    (name, value) for name, flag in NUMBERS.items() for value in beyond(flag)])
def test_values_outside_the_range_are_named(name, value):
    with pytest.raises(InputError, match=f"^--{name} ") as caught:
        check(options(f"--{name}={value}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("image_res", "0"), ("queue_size", "0"), ("max_tokens", "2"), ("seed", "-1"),
    ("margin", "-0.1"), ("prior", "0"), ("prior", "1"), ("momentum", "1"), ("log_step", "0"),
    ("lr_milestones", "-3"), ("learning_rate", "nan"), ("grad_clip", "inf")])
def test_values_that_cannot_work_are_named(name, value):
    with pytest.raises(InputError, match=f"^--{name} .*{re.escape(value)}"):
        check(options(f"--{name}={value}"))


@pytest.mark.parametrize(("name", "value"), [
    ("momentum", "0"), ("grad_clip", "0"), ("warmup_epochs", "0"), ("seed", "0"),
    ("queue_size", "32"), ("workers", "0"), ("posterior_floor", "0"), ("prior", "0.99"),
    ("lr_milestones", "0"), ("image_res", "8192")])
def test_values_at_the_ends_of_the_range_work(name, value):
    check(options(f"--{name}", value))


@pytest.mark.parametrize(("name", "value"), [
    ("margin", "0.2"), ("margin", None), ("margin", True), ("queue_size", 32.0), ("seed", [1]),
    ("max_violation", 1), ("max_violation", "yes"), ("lr_milestones", 5), ("lr_milestones", [5.0]),
    ("lr_milestones", [True]), ("text_encoder", 3), ("text_encoder", None), ("loss", ["fne"]),
    ("loss", "other"), ("freeze", "neither"), ("resume", "a text")])
def test_values_of_another_type_are_named(name, value):
    """As a checkpoint can hold them."""
    made = options()
    setattr(made, name, value)
    with pytest.raises(InputError, match=f"^--{name} "):
        check_values(made)


def test_an_int_serves_as_a_float_and_none_where_it_is_a_default():
    made = options()
    made.margin, made.freeze = 1, None
    check_values(made)


def test_the_bank_must_hold_a_batch():
    with pytest.raises(InputError, match="--queue_size 31: must hold a batch of 32"):
        check(options("--queue_size", "31"))
    check(options("--queue_size", "31", "--loss", "triplet"))


@pytest.mark.parametrize(("argv", "named"), [
    (["--freeze", "image", "--image_lr", "1e-4"], "--image_lr 0.0001: --freeze image"),
    (["--freeze", "text", "--text_lr", "0"], "--text_lr 0.0: --freeze text"),
    (["--recipe", "frozen", "--text_lr", "1e-4"], "--text_lr 0.0001: --freeze both"),
    (["--lr_schedule", "linear", "--lr_update", "3"], "--lr_update 3: --lr_schedule linear"),
    (["--temperature", "0.1"], "--temperature 0.1: --loss fne")])
def test_learning_rates_that_nothing_would_have_are_refused(argv, named):
    with pytest.raises(InputError, match=f"^{named}"):
        check(options(*argv))
    check(options("--freeze", "image", "--text_lr", "1e-4", "--weight_decay", "0.1"))


def test_a_number_may_be_given_as_its_word_and_as_no_other(capsys):
    assert options("--margin", "auto").margin == "auto" and options("--margin", "1").margin == 1.0
    with pytest.raises(SystemExit) as caught:
        parse("", ["--margin", "automatic"])
    assert caught.value.code == 2 and "--margin" in capsys.readouterr().err
    made = options()
    made.margin = "none"
    with pytest.raises(InputError, match="^--margin none"):
        check_values(made)


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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_help_that_prints(command):
    assert all(flag.help for flag in flags_of(command).values())
    text = " ".join(build_parser(command, "A docstring.").format_help().split())
    assert "A docstring." in text
    for flag in flags_of(command).values():
        assert (flag.name if flag.positional else f"--{flag.name}") in text
        assert " ".join(flag.help.split())[:20] in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_a_range(command):
    for flag in flags_of(command).values():
        least, largest = ({flag.low, flag.above} - {None}, {flag.high, flag.below} - {None})
        number = flag.value_type in (int, float)
        assert len(least) == len(largest) == number, flag.name
        assert flag.default is None or not number or flag.default == [5, 15] or flag.is_in_range(
            flag.default)


def test_no_path_and_no_permission_is_taken_from_a_checkpoint():
    taken = names_from_checkpoint(TrainOptions)
    assert not {name for name in taken if FLAGS[name].value_type is Path}
    assert not taken & {"follow_links", "device", "workers", "quiet", "test", "no_figures"}
    assert {"loss", "margin", "prior", "seed", "image_res", "freeze", "dataset"} <= taken


def test_a_flag_is_declared_once():
    @dataclass(kw_only=True)
    class Other:
        title = "other"
        margin: float = option(0.5, "another margin", low=0, high=1)

    @dataclass(kw_only=True)
    class Both(TripletOptions, Other):
        pass

    with pytest.raises(TypeError, match="margin"):
        flag_groups(Both)
    for command in COMMANDS:
        assert sum(len(flags) for flags in flag_groups(command).values()) == len(flags_of(command))


def test_what_a_resumed_command_must_repeat():
    made = parse("", ["--data_path", "my photos", "--image_column", "file", "--no_figures",
                      "--follow_links", "--workers", "1", "--val_path", "val"])[0]
    words = flags_to_repeat(made)
    for part in "--data_path 'my photos'", "--image_column file", "--no_figures", "--val_path val":
        assert f" {part}" in words
    assert words.count("--") == 4
    assert flags_to_repeat(parse("", [])[0]) == ""


def sources():
    """The program's own files, but for the one that defines the flags."""
    folders = ["", "common", "inputs", "encoders", "metrics", "training", "training/objectives",
               "figures", "scripts"]
    paths = [path for folder in folders for path in (ROOT / folder).glob("*.py")]
    return [path.read_text() for path in paths if path.name != "options.py"]


@pytest.mark.parametrize("name", {**FLAGS, **flags_of(ScoringOptions)})
def test_fidelity_note_7_no_flag_is_inert(name):
    """A file beside options.py reads it, other than to name it in a list."""
    reads = re.compile(rf"options\.{name}\b")
    assert any(reads.search(source) for source in sources())


# ------------------------------------------------------------------------------------ typed options


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
        elif typing.get_origin(hint) is not typing.ClassVar:
            parts = typing.get_args(hint) or (hint,)
            assert isinstance(value, tuple(typing.get_origin(part) or part for part in parts)), name


@pytest.mark.parametrize("name", ["max_violation", "grad_checkpointing", "compile", "all_captions"])
def test_what_a_checkpoint_has_switched_on_can_be_switched_off(name):
    on, off = (parse("", ["--dataset", "shapes", f"--{prefix}{name}"]) for prefix in ("", "no_"))
    assert getattr(on[0], name) is True and getattr(off[0], name) is False
    assert name in on[1] and name in off[1]
    assert getattr(parse("", ["--dataset", "shapes"])[0], name) is False


@pytest.mark.parametrize("name", ["follow_links", "test", "no_figures", "quiet"])
def test_what_no_checkpoint_sets_has_no_flag_to_switch_it_off(name, capsys):
    assert getattr(options(f"--{name}"), name) is True and getattr(options(), name) is False
    with pytest.raises(SystemExit):
        options(f"--no_{name}")


# ------------------------------------------------------------------------------ another objective


@dataclass(kw_only=True)
class MadeUpOptions(TripletOptions):
    """The options of an objective that an experiment adds."""

    title = "made up"
    strength: float = option(0.25, "strength of what is made up", low=0, high=2,
                             from_checkpoint=True)
    loud: bool = option(False, "say it", from_checkpoint=True)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "made_up", Entry(
        "training.objectives.triplet:TripletObjective", MadeUpOptions))


def test_an_objective_brings_its_flags(made_up, capsys):
    made, given = parse("", ["--data_path", "x", "--loss", "made_up", "--strength", "0.5",
                             "--loud"])
    assert (made.loss, made.strength, made.loud, made.margin) == ("made_up", 0.5, True, 0.2)
    assert given == {"data_path", "loss", "strength", "loud"}
    assert options("--loss", "made_up").strength == 0.25 and isinstance(made, TrainOptions)
    check(made)
    with pytest.raises(InputError, match="^--strength 3"):
        check(options("--strength", "3"))
    with pytest.raises(SystemExit):
        parse("", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "made_up" in text[text.index("--loss"):text.index("--oracle")]
    assert "--strength STRENGTH strength of what is made up (default: 0.25)" in text
    assert text.count("--margin ") == 1 and "--loud, --no_loud" in text


def test_a_checkpoint_sets_the_flags_of_an_added_objective(made_up, tmp_path):
    state = {"format": checkpoint.FORMAT, "model": {}, "criterion": {}, "options": {
        "loss": "made_up", "strength": 0.75, "loud": True, "resume": "elsewhere"}}
    assert {"strength", "loud"} <= names_from_checkpoint(options_class())
    made, given = parse("", ["--data_path", "x", "--no_loud"])
    checkpoint.merge_options(made, given, state, tmp_path)
    assert (made.loss, made.strength, made.loud, made.resume) == ("made_up", 0.75, False, None)
    scoring, given = parse_scoring("", ["x.tar"])
    of_run = checkpoint.options_of_run(scoring, state)
    assert (of_run.loss, of_run.strength, of_run.seed) == ("made_up", 0.75, 3407)
    state["options"]["strength"] = "strong"
    with pytest.raises(InputError, match="^--strength strong"):
        checkpoint.options_of_run(scoring, state)


def test_an_objective_that_inherits_another_ones_flags(made_up, monkeypatch):
    @dataclass(kw_only=True)
    class Further(MadeUpOptions, FNEOptions):
        title = "further"
        steepness: int = option(3, "steepness of what goes further", low=1, high=9)

    monkeypatch.setitem(OBJECTIVES, "further", Entry("nowhere:Further", Further))
    made = options("--loss", "further", "--steepness", "5", "--strength", "1")
    assert (made.steepness, made.strength, made.queue_size) == (5, 1.0, 8224)


def test_without_it_nothing_is_left_behind(capsys):
    assert options_class() is TrainOptions and "strength" not in flags_of(options_class())
    with pytest.raises(SystemExit):
        parse("", ["--loss", "made_up"])
    assert "made_up" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- other commands


def test_the_options_of_a_run_behind_a_command():
    """What a command that does not train was told comes first, then the checkpoint's."""
    state = {"options": {"margin": 0.3, "image_res": 64, "data_path": "elsewhere", "gone": 1}}
    scoring, _ = parse_scoring("", ["x.tar", "--image_res", "96"])
    of_run = checkpoint.options_of_run(scoring, state)
    assert type(of_run) is TrainOptions
    assert (of_run.margin, of_run.image_res, of_run.data_path, of_run.tau) == (0.3, 96, None, 0.5)
    training = options("--margin", "0.4")
    assert checkpoint.options_of_run(training, state) is training


def test_commands_share_the_declarations():
    for name, flag in flags_of(EncodingOptions).items():
        assert FLAGS[name] == flag == flags_of(ScoringOptions)[name]
    assert dataclasses.asdict(SourceOptions()).keys() == flags_of(CheckingOptions).keys()
