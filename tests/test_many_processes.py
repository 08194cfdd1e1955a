"""One run on several processes: the same as on one, and all of them to the same bit."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from helpers.one_process import in_a_new_process
from helpers.paths import ROOT
from helpers.photos import break_photos
from helpers.runs import assert_same, command, copy_of, final_state
from helpers.steps import make_run, take_step
from helpers.together import Processes, bytes_sent, run_together

import checkpoint
import evaluation
import train
from common.errors import InputError
from common.ranks import rank
from fne_loss import FNELoss

LOSSES = "losses"


def state_of(run):
    """What must be equal in all processes, all of it."""
    if run.options.shard:
        run.optimizer = torch.optim.Adam(run.model.parameters())  # each has another share
    state = checkpoint.pack(run)
    return {name: state[name] for name in ("model", "momentum_model", "bank", "criterion", "skips",
                                           "optimizer", "log_scale", "sigmoid_bias", "teacher",
                                           "logs", "best_rsum")
            if name in state}


def without_dropout(run):
    for module in [*run.model.modules(), *run.objective.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0


def start(count, arguments, folder, prepare=lambda run: None, before=lambda run: None):
    """A training run on `count` processes. Each keeps its losses and its state at the end beside
    what it prints; `prepare` gets the run before the first step, `before` before each."""
    def call():
        whole_step, kept = train.training_step, {LOSSES: []}

        def training_step(run, batch):
            if not kept[LOSSES]:
                prepare(run)
            before(run)
            loss = whole_step(run, batch)
            kept[LOSSES].append(float(loss))
            kept["run"] = run
            return loss

        train.training_step = training_step
        train.main(arguments)
        kept["state"] = state_of(kept.pop("run"))
        torch.save(kept, folder / f"kept_{rank()}")

    return Processes(count, call, folder)


def finish(count, *arguments, **hooks):
    """The same to its end, which is a good one: what each process kept."""
    group = start(count, *arguments, **hooks)
    assert group.statuses() == [0] * count, group.printed()
    folder = group.folder
    return [torch.load(folder / f"kept_{number}", weights_only=False) for number in range(count)]


@pytest.fixture(scope="module")
def two(data, one_thread, tmp_path_factory):
    """The folder of a run on two processes that was never interrupted, with dropout."""
    folder = tmp_path_factory.mktemp("two")
    kept = finish(2, command(data, folder / "run", "--save_step", "4"), folder)
    assert_same(kept[0], kept[1])
    return folder


@pytest.mark.parametrize("loss, counts", [
    ("fne", (2, 4)), ("triplet", (2,)), ("infonce", (2,)), ("sigmoid", (2,)),
    ("fne --oracle", (2,)), ("fne --freeze both --head mlp", (2,)),
    ("fne --posterior evidence", (2,)), ("fne --teacher captions:8 --match_bar 0.2", (2,)),
    ("triplet --teacher captions:8", (2,)), ("infonce --teacher captions:8", (2,)),
    ("infonce --oracle positives", (2,))])
def test_losses_do_not_depend_on_the_number_of_processes(data, tmp_path, loss, counts):
    """28 steps from the same weights without dropout, at the published learning rate: at a higher
    one Adam makes a large step of each gradient that is nothing but rounding."""
    def losses(count):
        folder = tmp_path / str(count)
        kept = finish(count, command(
            data, folder / "run", "--loss", *loss.split(), "--learning_rate", "2e-5",
            "--num_epochs", "4", "--warmup_epochs", "2",
            "--easy_epochs", "1", "--val_times", "1", "--val_step", "0"), folder, without_dropout)
        for other in kept[1:]:
            assert_same(kept[0], other)  # losses, weights, moments, bank and statistics, to the bit
        return torch.tensor(kept[0][LOSSES])

    alone = losses(1)
    assert len(alone) == 28
    for count in counts:
        assert torch.allclose(losses(count), alone, rtol=1e-5, atol=0)


def test_with_dropout_only_dropout_differs(data, two, tmp_path):
    """The first loss is of the same pairs with the same weights; with other masks in each process
    it comes close, and is not the same."""
    alone = finish(1, command(data, tmp_path / "run", "--num_epochs", "1"), tmp_path)[0][LOSSES][0]
    shared = torch.load(two / "kept_0", weights_only=False)[LOSSES][0]
    assert shared != alone and shared == pytest.approx(alone, rel=0.1)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_stops_all_and_resume_is_exact(data, two, tmp_path, number, status):
    """At the same step, with one line and one checkpoint; then the end is that of the whole run."""
    arguments = command(data, tmp_path / "run", "--save_step", "4")

    def before(run):
        if rank() == 1 and run.global_step == 9:
            os.kill(os.getpid(), number)

    group = start(2, arguments, tmp_path, before=before)
    assert group.statuses() == [status] * 2
    (line,) = group.printed().splitlines()
    assert line.startswith("stopped by SIG") and "step 10 is done and saved" in line
    finish(2, [*arguments, "--resume", "auto"], tmp_path)
    assert_same(final_state(tmp_path / "run"), final_state(two / "run"))


def test_a_step_exchanges_four_messages_beside_the_gradients(data, tmp_path):
    """Ids and signal, embeddings, keys, and what was drawn; the warm-up the first two."""
    def call():
        gathered, gather = [], dist.all_gather
        counts, whole_step = [], train.training_step

        def counting(*arguments, **keywords):
            gathered.append(1)
            return gather(*arguments, **keywords)

        def training_step(run, batch):
            result = whole_step(run, batch)
            counts.append((run.epoch, len(gathered)))
            gathered.clear()
            return result

        dist.all_gather, train.training_step = counting, training_step
        train.main(command(data, tmp_path / "run", "--num_epochs", "2", "--val_step", "100"))
        torch.save(counts, tmp_path / f"counts_{rank()}")

    group = Processes(2, call, tmp_path)
    assert group.statuses() == [0, 0], group.printed()
    counts = torch.load(tmp_path / "counts_1")
    # The first step of an epoch follows a validation, which exchanges its own.
    assert {count for epoch, count in counts[1:7] if epoch == 0} == {2}
    assert {count for epoch, count in counts[8:] if epoch == 1} == {4}


@pytest.mark.parametrize("count", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(data, two, tmp_path, count):
    """It says so, since that is not to the bit."""
    arguments = command(data, tmp_path / "run", "--resume",
                        str(two / "run" / "checkpoint.pth.tar"), "--num_epochs", "4")
    group = start(count, arguments, tmp_path)
    assert group.statuses() == [0] * count, group.printed()
    assert f"is of 2 processes, and goes on with {count}" in group.printed("out")
    state = checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")
    assert state["global_step"] == 28 and state["processes"] == count


def test_shared_moments_train_the_same_and_load_everywhere(data, two, tmp_path):
    """--shard: the same bits, stopped and gone on with; and one process takes its checkpoint."""
    def ended(folder):
        state = final_state(folder)
        del state["options"]["shard"], state["processes"]
        return state

    arguments = command(data, tmp_path / "run", "--save_step", "4", "--resume", "auto")
    stop = start(2, [*arguments, "--shard"], tmp_path,
                 before=lambda run: run.global_step == 9 and os.kill(os.getpid(), signal.SIGTERM))
    assert stop.statuses() == [143, 143], stop.printed()
    finish(2, arguments, tmp_path)  # it is among what a checkpoint brings
    assert_same(ended(tmp_path / "run"), ended(two / "run"))
    state = checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")
    assert state["options"]["shard"] and len(state["optimizer"]["state"]) > 10
    finish(1, [*arguments, "--num_epochs", "4"], tmp_path)
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["global_step"] == 28


GROUPS = ["--optimizer", "adamw", "--weight_decay", "0.2", "--lr_schedule", "cosine",
          "--image_lr", "2e-4", "--layer_decay", "0.8", "--save_step", "4"]


def test_groups_of_parameters_train_the_same_on_two_processes(data, tmp_path):
    """AdamW with several learning rates, with the moments in each process and shared out: the same
    bits, stopped and gone on with; and on one process the same but for rounding."""
    def ended(folder):
        state = final_state(folder)
        del state["options"]["shard"], state["processes"]
        return state

    whole = command(data, tmp_path / "whole", *GROUPS)
    kept = finish(2, whole, tmp_path)
    assert_same(kept[0], kept[1])
    arguments = command(data, tmp_path / "stopped", *GROUPS, "--shard", "--resume", "auto")
    stop = start(2, arguments, tmp_path,
                 before=lambda run: run.global_step == 9 and os.kill(os.getpid(), signal.SIGTERM))
    assert stop.statuses() == [143, 143], stop.printed()
    finish(2, arguments, tmp_path)
    assert_same(ended(tmp_path / "stopped"), ended(tmp_path / "whole"))
    assert len(ended(tmp_path / "stopped")["optimizer"]["param_groups"]) > 8
    losses = [finish(count, command(
        data, tmp_path / str(count), *GROUPS, "--image_lr", "1e-5", "--learning_rate", "2e-5",
        "--num_epochs", "2"), tmp_path, without_dropout)[0][LOSSES] for count in (1, 2)]
    assert len(losses[0]) == 14 and losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("count", [3, 5])
def test_evaluation_is_that_of_one_process(data, finished, tmp_path, count):
    """Eight photos and forty captions, which they cannot share alike; the results are told once."""
    def evaluate(count, folder):
        def call():
            os.environ["WORLD_SIZE"] = str(count)
            evaluation.main([str(finished / "model_best.pth.tar"), "--data_path", str(data),
                             "--device", "cpu", "--workers", "0", "--batch_size_test", "3",
                             "--output", str(folder / "metrics.json"),
                             "--save_embeddings", str(folder / "embeddings.npz")])
        group = Processes(count, call, folder)
        assert group.statuses() == [0] * count, group.printed()
        embeddings = evaluation.read_embeddings(folder / "embeddings.npz")
        return (json.loads((folder / "metrics.json").read_text()), group.printed("out"),
                embeddings.image_embeds, embeddings.text_embeds)

    metrics, printed, *embeds = evaluate(1, tmp_path / "1")
    others, told, *others_embeds = evaluate(count, tmp_path / "many")
    assert others == metrics and told == printed
    for one, many in zip(embeds, others_embeds):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(many), atol=1e-6)


def test_more_processes_than_photos(data, finished, tmp_path):
    """Some have no share of eight photos; the test of a run is shared too."""
    def call():
        train.main(["--test", "--dataset", "shapes", "--data_path", str(data), "--logger_name",
                    str(tmp_path / "run"), "--resume", str(finished / "model_best.pth.tar"),
                    "--device", "cpu", "--workers", "0", "--batch_size_test", "3"])

    group = Processes(9, call, tmp_path)
    assert group.statuses() == [0] * 9, group.printed()
    results = [json.loads((folder / "test_results.json").read_text())
               for folder in (tmp_path / "run", finished)]
    first = [result.pop("zero_shot") for result in results]
    assert results[0] == pytest.approx(results[1]) and first[0] == first[1]


def test_bad_photos_are_counted_over_all(data, tmp_path):
    """One that the second process meets is named once, by the first, and is in the checkpoint."""
    spoilt = copy_of(data, tmp_path)
    break_photos(spoilt, "train_00005.png")
    kept = finish(2, command(spoilt, tmp_path / "run", "--num_epochs", "1"), tmp_path)
    assert_same(kept[0], kept[1])
    assert (tmp_path / "err_0").read_text().count("Another takes its place; 1 bad so far") == 1
    assert (tmp_path / "err_1").read_text() == ""
    assert len(checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["bad_photos"]) == 1


def test_a_step_that_is_not_finite_in_one_is_left_out_by_all(data, tmp_path):
    """The loss of the second one's anchors is NaN: none of them moves, and all count it."""
    def before(run):
        own = FNELoss.hinge_of
        spoilt = rank() == 1 and run.global_step == 8
        run.objective.criterion.hinge_of = (
            (lambda *given: own(run.objective.criterion, *given) * torch.nan) if spoilt
            else own.__get__(run.objective.criterion))

    kept = finish(2, command(data, tmp_path / "run"), tmp_path, before=before)
    assert_same({name: value for name, value in kept[0].items() if name != LOSSES},
                {name: value for name, value in kept[1].items() if name != LOSSES})
    assert kept[0]["state"]["skips"]["count"] == 1 and kept[0]["state"]["skips"]["step"] == 9
    assert [loss != loss for loss in kept[0][LOSSES]].index(True) == 8


def test_an_error_in_one_process_ends_the_run(data, tmp_path):
    def before(run):
        if rank() == 1 and run.global_step == 3:
            raise InputError("--data_path: the disk is gone")

    group = start(2, command(data, tmp_path / "run"), tmp_path, before=before)
    assert group.statuses() == [2, 2]
    assert group.printed() == "error: --data_path: the disk is gone\n"


def test_processes_that_come_apart_end_the_run(data, tmp_path):
    """As on machines that round otherwise: seen at the next validation, and not saved."""
    def before(run):
        if rank() == 1 and run.global_step == 8:
            run.objective.bank.text_keys[12, 0] += 1e-7  # which no batch replaces until then

    group = start(2, command(data, tmp_path / "run"), tmp_path, before=before)
    assert group.statuses() == [2, 2]
    (line,) = group.printed().splitlines()
    assert "step 10: the processes no longer have the same bank.text_keys" in line
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["global_step"] == 7


def test_a_folder_that_only_one_machine_sees_is_refused(data, tmp_path):
    def call():
        os.chdir(tmp_path / f"machine_{rank()}")
        train.main(command(data, "run"))

    for number in 0, 1:
        (tmp_path / f"machine_{number}").mkdir()
    group = Processes(2, call, tmp_path)
    assert group.statuses() == [2, 2]
    (line,) = group.printed().splitlines()
    assert "--logger_name run" in line and "all machines share" in line


@pytest.mark.parametrize("change", [
    lambda rows: rows.reverse(),
    lambda rows: rows[3].update(caption="a green square"),
    lambda rows: rows[0].update(image=rows[1]["image"]) or rows[1].update(image="other.png")])
def test_processes_with_other_data_end_before_training(data, tmp_path, change):
    """Captions in another order, another caption, other photos for the same captions."""
    folders = [copy_of(data, tmp_path / str(number)) for number in range(2)]
    for folder in folders:
        for split in "train", "val", "test":
            (folder / f"shapes_{split}.json").rename(folder / f"flickr8k_{split}.json")
    rows = json.loads((folders[1] / "flickr8k_train.json").read_text())
    shutil.copy(folders[1] / rows[0]["image"], folders[1] / "other.png")
    change(rows)
    (folders[1] / "flickr8k_train.json").write_text(json.dumps(rows))

    def call():
        train.main(command(
            folders[rank()], tmp_path / "run", "--dataset", "flickr8k", "--json_path",
            str(folders[rank()]), "--text_encoder", "tiny-bert", "--image_encoder",
            "small-convnext", "--image_res", "32"))

    group = Processes(2, call, tmp_path)
    assert group.statuses() == [2, 2], group.printed()
    (line,) = [line for line in group.printed().splitlines() if line.startswith("error")]
    assert "the train split is 24 photos, 120 captions" in line
    assert not (tmp_path / "run" / "checkpoint.pth.tar").exists()


SCRIPT = """
import os, signal, sys
from pathlib import Path
import pytest
from helpers import encoders
from helpers.runs import SIZES
from inputs import shapes
import train
shapes.DEFAULT_SIZES = SIZES
encoders.shrink_built_in(pytest.MonkeyPatch())
whole_step = train.training_step

def training_step(run, batch):
    if run.global_step == 9 and os.environ["RANK"] == "1" and not Path(sys.argv[1]).exists():
        Path(sys.argv[1]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_step(run, batch)

train.training_step = training_step
train.main(sys.argv[2:])
"""


def test_torchrun_starts_it_and_after_a_kill_starts_it_again(data, two, tmp_path):
    """By itself, from the last checkpoint; it ends as the run that nobody stopped."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "--max_restarts", "2", script, tmp_path / "killed",
         *command(data, tmp_path / "run", "--save_step", "4", "--resume", "auto")],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and (tmp_path / "killed").exists(), done.stderr
    assert_same(final_state(tmp_path / "run"), final_state(two / "run"))
    results = [(folder / "run" / "test_results.json").read_text() for folder in (tmp_path, two)]
    assert results[0] == results[1]


def test_gradients_in_bfloat16_halve_what_is_sent(tmp_path):
    """Over 50 steps the losses are those of float32 within 1e-3; all processes stay alike."""
    def call(dtype):
        sent = bytes_sent()
        run, batches = make_run(tmp_path, "--loss", "infonce", "--learning_rate", "2e-5",
                                "--comm_dtype", dtype)
        without_dropout(run)
        losses = [take_step(run, batches[number % 2]) for number in range(50)]
        return torch.stack(losses), sum(sent), checkpoint.pack(run)["model"]

    found = {dtype: run_together(2, lambda dtype=dtype: call(dtype), tmp_path)
             for dtype in ("float32", "bfloat16")}
    (exact, whole, _), _ = found["float32"]
    (losses, half, weights), (*_, other_weights) = found["bfloat16"]
    assert torch.allclose(losses, exact, rtol=0, atol=1e-3) and not torch.equal(losses, exact)
    assert 2 * half == whole
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert_same(dict(weights), dict(other_weights))


def test_one_process_that_exchanges_with_itself_trains_the_same():
    """Over gloo, to the bit; `tests/test_cuda.py` has the counterpart over NCCL."""
    found = in_a_new_process("cpu")
    assert set(found["sent"]) == {"gloo"} and found["sent"]["gloo"] >= 4 * 2
    assert found["together"] == found["alone"] and min(found["alone"]) > 0
