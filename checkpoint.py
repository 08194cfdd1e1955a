"""Checkpoints: what they hold, how a run goes on from them exactly, and the authors' own files.

A checkpoint of this program is a flat dictionary (see `pack`). Released ones are recognised by
their parts (`encoders/released.py`). `training/storage.py` writes and reads the files; nothing in
them is ever run as code.
"""

import argparse
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.errors import InputError, one_line, reraise_out_of_memory
from common.flags import flags_of, flags_to_repeat, names_from_checkpoint
from common.options import EncodingOptions, LoadedParts, set_data_path
from common.presets import IMAGE_ENCODER, TEXT_ENCODER, USUAL_AMBIGUITY
from common.processes import broadcast_from_main, consolidate_state
from common.ranks import is_main, world_size
from common.terminal import print_status, warn
from encoders import stored as stored_encoders
from encoders.folder import read_model
from encoders.hub import is_hub_name
from encoders.lora import AdapterSettings, add_adapters, check_base
from encoders.open_clip_pairs import SCHEME
from encoders.pairs import LogitScale, with_names_of_today
from encoders.released import is_released, released_encoders, released_options
from memory_bank import EMPTY, MemoryBank
from model import DualEncoder, build_model, check_embeddings
from training import storage
from training.facts import run_facts
from training.objectives.fne import check_bank
from training.options import TrainOptions, options_class, set_precision
from training.restore import PROGRESS, load_number, load_optimizer, load_progress, load_weights
from training.run import Run

FORMAT = storage.FORMAT
FILE_ENDINGS = ".tar", ".pt", ".pth", ".ckpt", ".bin", ".safetensors"  # of checkpoints' names
# What a new run takes over with the weights that --init names.
WITH_WEIGHTS = ("image_encoder", "text_encoder", "vocab", "embed_size", "head", "image_pooling",
                "text_pooling", "image_res", "image_fit", "image_stats", "max_words", "max_tokens",
                "caption_prefix", "captions")
# And with adapters.
WITH_ADAPTERS = "lora", "lora_alpha", "lora_dropout", "base_dtype", "freeze"
BASE_KEY = "base"  # of a checkpoint of adapters: the digests of the weights beside them, by side
# What a run cannot change when it goes on, its flags declare (`fixed` of `common.flags.option`).
# But a released checkpoint may be fine-tuned on another data set than its own, and does not name
# its encoders: its weights tell whether the configurations fit.
FREE_IN_RELEASED = "dataset", "image_encoder", "text_encoder"


def read(path: Path, **way_out: str) -> dict:
    """Read the content of a checkpoint, ours or released, with its tensors mapped from the file.

    A folder that `export.py` wrote, and a pretrained pair, count as a checkpoint without the state
    of a run.

    Args:
        path: the file or folder, or the name of a model on the Hub.
        way_out: `way_out` of `storage.load`, the end of the message where there is no file.

    Raises:
        InputError: it is missing, no checkpoint, damaged, holds code, or lacks a main part.
    """
    if path.is_dir() or (not os.path.lexists(path) and names_hub_model(path)):
        return {"format": FORMAT, **read_model(path)}
    state = storage.load(path, **way_out)
    if not (isinstance(state, dict) and (state.get("format") == FORMAT or is_released(state))):
        raise InputError(f"{path} is neither a checkpoint of this program nor a released one")
    if is_released(state):
        return state
    for name in "options", "model":
        if not isinstance(state.get(name), dict):
            raise InputError(f"{path} is no whole checkpoint: it lacks {name!r}")
    return state | {"model": with_names_of_today(state["model"])}


def names_hub_model(path: Path) -> bool:
    """Return whether a path can be the name of a model on the Hub, and not a checkpoint's file."""
    name = str(path).removeprefix(SCHEME)
    return is_hub_name(name) and not path.name.endswith(FILE_ENDINGS)


def find(options: TrainOptions) -> tuple[Path, dict] | tuple[None, None]:
    """Find the checkpoint that a command starts from, in the first process; the others follow it.

    Returns:
        Path and content; None, None for a new run.

    Raises:
        InputError: of `find_here`.
    """
    path, state = find_here(options) if is_main() else (None, None)
    path = broadcast_from_main(path)
    return path, read(path) if path is not None and state is None else state


def find_here(options: TrainOptions) -> tuple[Path, dict] | tuple[None, None]:
    """Find the checkpoint that a command starts from, as this process sees the disk.

    Returns:
        Path and content; None, None for a new run.

    Raises:
        InputError: `--resume` names none that can be read, `--test` finds no best one, or `--init`
            is given beside them.
    """
    if options.init is not None and (options.test or options.resume not in (None, Path("auto"))):
        raise InputError(f"--init {options.init} starts a new run: leave it out, or --test and "
                         "--resume")
    auto = options.resume == Path("auto")
    if auto and not options.test:
        return newest(options.logger_name)
    best = options.logger_name / storage.BEST if options.test else None
    path = best if auto else options.resume or best
    return (path, read(path)) if path else (None, None)


def newest(folder: Path) -> tuple[Path, dict] | tuple[None, None]:
    """Find the newest whole checkpoint in a run's folder, for `--resume auto`.

    The best checkpoint is a whole one as well: it serves where the last one is damaged.

    Returns:
        Path and content; None, None where there is none.
    """
    for path in folder / storage.NEWEST, folder / storage.BEST:
        try:
            if os.path.lexists(path) and not is_released(state := read(path)):
                return path, state
        except storage.NotReadable:
            raise  # going on from an older one would replace a newer that may be whole
        except InputError as error:
            warn(f"--resume auto passes over {error}")
    return None, None


def choose_folder(
    options: TrainOptions, given: set[str], state: dict | None, path: Path | None
) -> None:
    """Set `options.logger_name` in place to the folder that this command writes to.

    A run goes on, and is tested, in the folder that its checkpoint lies in, wherever that was
    copied or moved to, or in a new one that `--logger_name` names.

    Args:
        options: of the command line.
        given: names of the options that the command line gave.
        state: the content of the checkpoint; None for a new run.
        path: the checkpoint; None for a new run.

    Raises:
        InputError: the folder holds another run.
    """
    if path is None:
        return  # a fresh run: `storage.prepare_folder` moves a former one aside
    if is_pretrained_pair(state):
        if "logger_name" not in given:  # nothing is written into the pair's own folder
            options.logger_name = Path("runs") / f"{options.dataset}_{path.name}"
        return
    run_folder = path if path.is_dir() else path.parent
    released = is_released(state)
    if "logger_name" not in given and (options.test or not released):
        options.logger_name = run_folder
    same = options.logger_name.resolve() == run_folder.resolve()
    if not released and not same and storage.holds_run(options.logger_name):
        raise InputError(f"--logger_name {options.logger_name} holds another run than {path}: "
                         "leave the flag out, or name a new folder")


def stored_options(state: dict) -> dict:
    """Return the options that a checkpoint sets where the command line does not, by name."""
    if is_released(state):
        # Fixed values, so that no preset of a data set replaces them.
        return {"image_encoder": IMAGE_ENCODER, "text_encoder": TEXT_ENCODER, "oracle": "off",
                "posterior": "published", "head": "linear"} | released_options(state)
    # Checkpoints of earlier versions do not have these options.
    earlier = {"oracle": "off", "posterior": "published", "ambiguity": USUAL_AMBIGUITY,
               "captions": "published", "image_fit": "squash", "head": "linear",
               "recipe": None, "optimizer": "adam", "weight_decay": 0.0, "image_lr": None,
               "text_lr": None, "head_lr": None, "layer_decay": 1.0, "lr_schedule": "steps"}
    allowed = names_from_checkpoint(options_class())
    return earlier | {name: value for name, value in state["options"].items() if name in allowed}


def options_of_run(options: EncodingOptions, state: dict) -> TrainOptions:
    """Return the options of the run that made a checkpoint, as the command with `options` sees it.

    The values of `options` come first: the command may have been given other ones. A command that
    does not train has only a part of the options; the others are the checkpoint's, or the published
    setting. `loss` may name an objective that this program does not have: scoring needs none.

    Raises:
        InputError: the checkpoint holds a value that its flag cannot give.
    """
    if isinstance(options, TrainOptions):
        return options
    flags = flags_of(options_class())
    values = {name: value for name, value in vars(options).items() if name in flags}
    of_run = options_class()(**stored_options(state) | values)
    if isinstance(of_run.loss, str) and of_run.loss.isidentifier():
        del flags["loss"]
    for name, flag in flags.items():
        flag.check(getattr(of_run, name))
    return of_run


def merge_options(options: EncodingOptions, given: set[str], state: dict, path: Path) -> None:
    """Fill `options` in place from a checkpoint, except what the command line gave.

    `options.stored_encoders` becomes what the checkpoint brings along of its encoders.

    Raises:
        InputError: the command line gave something that the weights in the checkpoint exclude.
    """
    stored = stored_options(state)
    testing = not isinstance(options, TrainOptions) or options.test
    flags = flags_of(type(options))
    if testing:
        fixed = {"embed_size", "head", "oracle"}
    else:
        fixed = {name for name, flag in flags.items() if flag.fixed}
        if is_released(state):
            fixed -= set(FREE_IN_RELEASED)
        if stored.get("lora"):  # the base may lie elsewhere; its digest tells whether it is the one
            fixed -= {"image_encoder", "text_encoder"}
    for name, value in stored.items():
        if not hasattr(options, name):
            continue  # the command has no such option
        # Of a flag such as --margin auto the run has made a number, with which it goes on.
        if name not in given or getattr(options, name) in flags[name].words:
            setattr(options, name, value)
        elif name in fixed and getattr(options, name) != value:
            raise InputError(f"--{name} {getattr(options, name)} does not fit {path}, which was "
                             f"made with {value}: leave the flag out"
                             + ("" if testing else ", or start a new run"))
    set_data_path(options, given)
    if not is_released(state):
        options.stored_encoders = stored_encoders.read_stored_encoders(
            state, state["model"], str(path), given)


def begin_from(options: TrainOptions, given: set[str]) -> None:
    """Fill `options` in place for a new run that begins with the weights of `--init`.

    Args:
        options: of the command line; `init_weights` and `stored_encoders` are set as well.
        given: names of the options that the command line gave, which stay.

    Raises:
        InputError: `--init` names no folder of a model and no checkpoint of this program, or it
            holds all weights and `--lora` wants adapters alone, or the other way round.
    """
    state = read(options.init)
    if is_released(state):
        raise InputError(f"--init {options.init} is a released checkpoint: go on from it with "
                         "--resume, or export it first")
    stored = {"head": "linear"} | state["options"]  # earlier versions do not name the head
    has_adapters = bool(stored.get("lora"))
    for name in WITH_WEIGHTS + (WITH_ADAPTERS if has_adapters else ()):
        if name in stored and name not in given:
            setattr(options, name, stored[name])
    if bool(options.lora) is not has_adapters:
        way_out = ("export.py merges its adapters into all weights" if has_adapters else
                   "adapters need a base that --image_encoder and --text_encoder name")
        raise InputError(f"--init {options.init} does not go with --lora {options.lora}: {way_out}")
    set_precision(options, given)
    options.init_weights, options.init_base = state["model"], state.get(BASE_KEY)
    options.stored_encoders = stored_encoders.read_stored_encoders(
        state, state["model"], str(options.init), given)


def start_from(
    options: TrainOptions, given: set[str], lock: storage.FolderLock
) -> tuple[Path, dict] | tuple[None, None]:
    """Find what a command of train.py starts from, and fill `options` from it in place.

    Args:
        options: of the command line; `resume` becomes the path of the checkpoint.
        given: names of the options that the command line gave, which a checkpoint does not change.
        lock: taken where `--resume auto` looks into the run's own folder.

    Returns:
        The checkpoint's path and content; None, None for a new run.

    Raises:
        InputError: there is no such checkpoint, or it does not fit the command line.
    """
    if options.resume == Path("auto") and not options.test:
        lock.take(options.logger_name)
    path, state = find(options)
    options.resume = path
    choose_folder(options, given, state, path)
    if state is not None:
        merge_options(options, given, state, path)
    elif options.init is not None:
        begin_from(options, given)
    return path, state


def is_pretrained_pair(state: dict) -> bool:
    """Return whether a state is that of a pretrained pair, and of no folder of `export.py`."""
    return "folder" in state and "format" not in state["folder"]


def holds_a_run(state: dict | None) -> bool:
    """Tell whether a checkpoint holds a run to go on with: one of ours, and no released one."""
    return state is not None and not is_released(state)


def model_for_training(
    options: TrainOptions, state: dict | None, path: Path | None, tokenizer
) -> DualEncoder:
    """Build the model of a run, in training mode, and seed PyTorch with `--seed`.

    It has the weights of a released checkpoint, of `--init` or of pretrained encoders; random ones
    where `unpack` fills them from a checkpoint.

    Args:
        options: the run's options.
        state: the content of the checkpoint `path` that the run starts from; None for a new run.
        tokenizer: of the text encoder.
    """
    torch.manual_seed(options.seed)
    if state is not None and is_released(state):
        if options.lora:
            raise InputError(f"--lora {options.lora}: adapters need a base that --image_encoder "
                             f"and --text_encoder name, and {path} is a released checkpoint")
        return released_dual_encoder(options, state, path)
    weights = options.init_weights
    if options.lora:
        source, digests = (options.init, options.init_base) if state is None else (
            path, state.get(BASE_KEY))
        model = model_with_adapters(options, options, tokenizer, source, digests)
    else:
        pretrained = state is None and weights is None
        model = build_model(options, tokenizer, pretrained, options.freeze)
    if weights is not None:
        load_weights(model, weights, options.init)
    return model


def model_with_adapters(
    options: EncodingOptions, run_options: TrainOptions, tokenizer, path: Path | None,
    digests: dict | None,
) -> DualEncoder:
    """Build a model of pretrained encoders with new adapters, in training mode.

    Args:
        options: what describes the model.
        run_options: of the run that trains it, or has.
        tokenizer: of the text encoder.
        path: the checkpoint that the adapters come from; None for new ones.
        digests: of the base of that checkpoint.

    Raises:
        InputError: an encoder takes no adapters, or is not the base of the checkpoint.
    """
    model = build_model(options, tokenizer, True, run_options.freeze)
    settings = AdapterSettings(run_options.lora, run_options.lora_alpha, run_options.lora_dropout,
                               run_options.base_dtype)
    add_adapters(model, {"image": options.image_encoder, "text": options.text_encoder}, settings)
    if path is not None:
        check_base(model, digests, path)
    return model


def pack(run: Run) -> dict:
    """Collect everything that a run needs to go on as if it had never stopped.

    Returns:
        A dictionary of plain values and tensors: options, progress, weights, optimizer, the entries
        of the objective, and what describes the encoders.

    Raises:
        TypeError: an entry of the objective has the key of another part of the checkpoint.
    """
    options = {name: str(value) if isinstance(value, Path) else value
               for name, value in vars(run.options).items()
              if name not in ("resume", "test", "init", *LoadedParts.__annotations__)}
    state = {
        "format": FORMAT, "options": options,
        **{name: getattr(run, name) for name in PROGRESS},
        "zero_shot": run.zero_shot, "steps_per_epoch": run.steps_per_epoch,
        "logs": [{name: float(value) for name, value in logs.items()} for logs in run.logs],
        stored_encoders.ENCODERS_KEY: run.encoders,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "skips": run.skips.state_dict(),
        "processes": world_size(),
    }
    if run.model.base_digests is not None:
        state[BASE_KEY] = run.model.base_digests
    if run.teacher is not None:
        state["teacher"] = run.teacher.state_dict()
    for name, value in run.objective.entries().items():
        if name in state:
            raise TypeError(f"{type(run.objective).__name__}.entries: {name!r} is the key of "
                            "another part of the checkpoint; take another name")
        state[name] = value.state_dict() if isinstance(value, nn.Module) else value.detach()
    return state


def save(run: Run, best: bool) -> str:
    """Save a run as `checkpoint.pth.tar`, and as `model_best.pth.tar` if it is the best so far.

    All processes have the same state, and the first one saves it for all.

    Returns:
        A line that says how to go on; empty in the other processes.
    """
    consolidate_state(run.optimizer)
    if not is_main():
        return ""
    folder, state = run.options.logger_name, pack(run)
    # The best first: a run killed between the two goes on from before it, and saves it again.
    if best:
        storage.save_twice(folder / storage.BEST, folder / storage.NEWEST, state)
    else:
        storage.save(folder / storage.NEWEST, state)
    command = f"python train.py --resume {folder / storage.NEWEST}{flags_to_repeat(run.options)}"
    return (f"step {run.global_step} is done and saved; go on with the same command and --resume "
            f"auto, or with: {command}")


def read_best(path: Path) -> dict:
    """Read the best checkpoint of a run that has ended, with a warning if it is the first state."""
    state = read(path)
    if state.get("global_step") == 0:
        warn("no validation of this run was better than the one before its first step: what is "
             f"tested now, {path}, is the model as it was before training")
    return state


def model_for_testing(
    options: EncodingOptions, state: dict, path: Path, tokenizer
) -> DualEncoder:
    """Build the model of a checkpoint, ours or released, in evaluation mode.

    Args:
        options: what describes the model.
        state: the content of the checkpoint `path`.
        tokenizer: of the text encoder.
    """
    if is_released(state):
        return released_dual_encoder(options, state, path)
    run_options = options_of_run(options, state)
    if run_options.lora:
        model = model_with_adapters(options, run_options, tokenizer, path, state.get(BASE_KEY))
    else:
        model = build_model(options, tokenizer, pretrained=False)
    load_weights(model, state["model"], path)
    if model.logit_scale is not None:  # a loss may have trained it
        model.set_logit_scale(trained_logit_scale(state, path) or
                              LogitScale(model.logit_scale, model.logit_bias))
    check_embeddings(model.eval(), path)
    return model


def trained_logit_scale(state: dict, path: Path) -> LogitScale | None:
    """Return the logit scale and bias that a loss has trained; None of a loss without them.

    Args:
        state: the content of the checkpoint `path`.

    Raises:
        InputError: they are damaged.
    """
    if "log_scale" not in state:
        return None
    try:
        log_scale, bias = (float(state.get(name, 0.0)) for name in ("log_scale", "sigmoid_bias"))
        return stored_encoders.read_logit_scale([math.exp(log_scale), bias], str(path))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: its logit scale is none ({one_line(error)})") from error


def unpack(run: Run, state: dict, path: Path) -> None:
    """Load a packed state in place into a run that was built with the same options.

    Args:
        run: the run at its start.
        state: the content of the checkpoint `path`.

    Raises:
        InputError: the state does not fit the options, or is not what `pack` makes.
    """
    if is_released(state):
        return unpack_released(run, state, path)
    if "folder" in state:
        raise InputError(f"{path} holds a model and no run to go on with: start a new run from it "
                         "with --init")
    try:
        entries = {"model": run.model, "skips": run.skips, **run.objective.entries()}
        if run.teacher is not None:
            run.teacher.check_digest(state["teacher"])
            entries["teacher"] = run.teacher
        for name, value in entries.items():
            if isinstance(value, nn.Module):
                load_weights(value, state[name], path)
            else:
                load_number(value, state[name])
        load_optimizer(run.optimizer, state["optimizer"])
        if state["steps_per_epoch"] != run.steps_per_epoch:
            raise InputError(
                f"{path} was made with {state['steps_per_epoch']} steps in an epoch and the "
                f"training split now has {run.steps_per_epoch}: bring back its old files, or start "
                "a new run")
        load_progress(run, state)
        run.objective.check_entries(len(run.photos) or None, run.captions)
        made_by = state.get("processes", 1)
        if type(made_by) is not int or made_by < 1:
            raise ValueError(f"it is of {made_by!r} processes")
        if made_by != world_size():
            print_status(f"{path} is of {made_by} processes, and goes on with {world_size()}: the "
                         "same run, but for rounding and dropout, and so not to the bit")
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reraise_out_of_memory(error)
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no whole checkpoint of this version, so no run can go on "
                         f"from it ({type(error).__name__}: {one_line(error)})") from error


def fitted_statistics(state: dict, path: Path) -> np.ndarray | None:
    """Read the fitted N+ and N- of a checkpoint.

    Args:
        state: what is in the checkpoint.
        path: its file or folder, with which error messages begin.

    Returns:
        (2, 3) count, mean and m2 of N+ and of N-; None of a checkpoint of another loss, and of a
        released one, whose statistics were not saved.

    Raises:
        InputError: they are damaged.
    """
    if is_released(state) or "bank" not in state:
        return folder_statistics(state, path)
    criterion = state["criterion"]
    try:
        return np.array([[float(criterion[f"{side}.{name}"]) for name in ("count", "mean", "m2")]
                         for side in ("positive", "negative")])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} lacks its statistics ({one_line(error)})") from error


def folder_statistics(state: dict, path: Path) -> np.ndarray | None:
    """Read the fitted N+ and N- of a folder that `export.py` wrote: (2, 3), or None without them.

    Raises:
        InputError: they are damaged.
    """
    values = state.get("folder", {}).get("about", {}).get("statistics")
    if values is None:
        return None
    try:
        values = np.array(values, dtype=float)
        if values.shape != (2, 3) or not np.isfinite(values).all():
            raise ValueError("not two rows of three numbers")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: its statistics are none ({one_line(error)})") from error
    return values


def facts(options: TrainOptions, state: dict) -> dict[str, object]:
    """Collect facts about a checkpoint for reports, by name; few are known of a released one.

    Args:
        options: of `options_of_run`.
        state: content of the checkpoint.
    """
    if is_released(state):
        return {"checkpoint": "released"} | run_facts(options, None)
    return run_facts(options, state)


def unpack_released(run: Run, state: dict, path: Path) -> None:
    """Load momentum encoders and memory bank of a released checkpoint into a run in place.

    The bank is left empty where the data set is another one. The online encoders were loaded when
    the model was built.
    """
    sampler = run.objective.sampler()
    if sampler is None:
        return
    momentum_model = released_dual_encoder(run.options, state, path, momentum=True)
    sampler.momentum_model.load_state_dict(momentum_model.state_dict())
    dataset = vars(state["opt"]).get("dataset")
    same_data = run.options.dataset == dataset
    # The bank numbers the photos of its own data set. On another one these numbers would exclude,
    # and show, photos that only happen to have them.
    if same_data and load_released_bank(run, sampler.bank, state["model"][0], path):
        message = "weights, momentum weights and memory bank carry over"
    else:
        photos = "other photos than the training split's" if same_data else dataset
        message = ("weights and momentum weights carry over; the memory bank, of "
                   f"{photos}, starts empty")
    print_status(f"{path} is a released checkpoint:\n  {message};\n"
                 "  optimizer, statistics and epoch count start fresh")


def load_released_bank(run: Run, run_bank: MemoryBank, queues: dict, path: Path) -> bool:
    """Load the keys and photo ids of a released checkpoint's bank in place; it knows no captions.

    Args:
        run: the run, whose training split has the photos.
        run_bank: the bank to fill.
        queues: the state that holds the released bank.
        path: the released checkpoint.

    Returns:
        Whether its ids are those of photos of the training split; else nothing is changed.
    """
    bank = MemoryBank(*run_bank.image_keys.shape)
    try:
        load_weights(bank, {
            "image_keys": queues["image_queue"].T, "text_keys": queues["text_queue"].T,
            "image_ids": queues["idx_queue"][0], "pointer": queues["queue_ptr"][0],
            "text_ids": torch.full_like(queues["idx_queue"][0], EMPTY),
        }, path)
    except (KeyError, IndexError) as error:
        raise InputError(f"{path} is a released checkpoint without a whole memory bank") from error
    try:
        check_bank(bank, len(run.photos) or None, None)
    except ValueError:
        return False
    run_bank.load_state_dict(bank.state_dict())
    return True


def released_dual_encoder(
    options: EncodingOptions, state: dict, path: Path, momentum: bool = False
) -> DualEncoder:
    """Build the dual encoder of a released checkpoint, in evaluation mode.

    Args:
        options: of which image_encoder, text_encoder, text_pooling and image_res are used.
        state: the content of the checkpoint `path`.
        momentum: whether to load the momentum encoders instead of the online ones.
    """
    encoders = released_encoders(options, state, path, momentum)
    return DualEncoder(*encoders, text_pooling=options.text_pooling, image_res=options.image_res,
                       max_tokens=getattr(options, "max_tokens", 30)).eval()


def load_released(path, image_encoder: str, text_encoder: str) -> DualEncoder:
    """Load a checkpoint of the authors as a `DualEncoder` in evaluation mode, with padded pooling.

    Args:
        path: the authors' `model_best.pth.tar`.
        image_encoder, text_encoder: Hub names or local folders of the configurations; no
            pretrained weights are fetched.

    Raises:
        InputError: no released checkpoint, or one that does not fit the configurations.
    """
    state = read(Path(path))
    if not is_released(state):
        raise InputError(f"{path} is not a released checkpoint")
    options = argparse.Namespace(image_encoder=str(image_encoder), text_encoder=str(text_encoder),
                                 **released_options(state))
    return released_dual_encoder(options, state, Path(path))
