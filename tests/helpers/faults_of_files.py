"""Faults of checkpoints, flags, embeddings and judgements."""

import json
import zipfile

import numpy as np
import torch

import evaluation
from helpers.faults import Evil, fault
from helpers.runs import CPU

# ------------------------------------------------------------------------------------- checkpoints

@fault("an empty file", "checkpoint.pth.tar")
def checkpoint_empty(place):
    place.resume(lambda state: b"")


@fault("a checkpoint cut short", "checkpoint.pth.tar")
def checkpoint_cut_short(place):
    place.resume(lambda state: (place.finished / "checkpoint.pth.tar").read_bytes()[:100_000])


@fault("a checkpoint with one flipped bit in a weight", "checkpoint.pth.tar")
def checkpoint_flipped_bit(place):
    content = bytearray((place.finished / "checkpoint.pth.tar").read_bytes())
    content[len(content) // 2] ^= 1
    place.resume(lambda state: bytes(content))


@fault("a text", "checkpoint.pth.tar")
def checkpoint_a_text(place):
    place.resume(lambda state: b"some text\n" * 100)


@fault("a checkpoint that would run code", "checkpoint.pth.tar")
def checkpoint_with_code(place):
    place.resume(lambda state: state.update(extra=Evil(place.folder)))


@fault("a zip file of something else", "checkpoint.pth.tar")
def checkpoint_other_zip(place):
    path = place.resume(lambda state: b"")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "x")


@fault("a list of tensors", "checkpoint.pth.tar")
def checkpoint_a_list(place):
    place.resume(lambda state: [torch.zeros(2)])


@fault("another program's checkpoint", "checkpoint.pth.tar")
def checkpoint_of_another_program(place):
    place.resume(lambda state: {"state_dict": {"weight": torch.zeros(2)}})


@fault("a checkpoint without its model", "checkpoint.pth.tar")
def checkpoint_without_model(place):
    place.resume(lambda state: state.pop("model") and None)


@fault("a checkpoint whose weights are numbers", "checkpoint.pth.tar")
def checkpoint_weights_numbers(place):
    place.resume(lambda state: state.update(model=dict.fromkeys(state["model"], 1)))


@fault("a checkpoint with a weight of another shape", "checkpoint.pth.tar")
def checkpoint_other_shape(place):
    place.resume(lambda state: state["model"].update(
        {"image_projection.weight": torch.zeros(2, 2)}))


@fault("a checkpoint without its counts of skipped steps", "checkpoint.pth.tar")
def checkpoint_without_skips(place):
    place.resume(lambda state: state.pop("skips") is None or None)


@fault("a checkpoint with another optimizer's state", "checkpoint.pth.tar")
def checkpoint_other_optimizer(place):
    place.resume(lambda state: state.update(optimizer={"state": {}, "param_groups": []}))


@fault("a checkpoint whose epoch is a text", "checkpoint.pth.tar")
def checkpoint_epoch_a_text(place):
    place.resume(lambda state: state.update(epoch="one"))


@fault("a checkpoint with an option of no sense", "--loss")
def checkpoint_option_unknown(place):
    place.resume(lambda state: state["options"].update(loss="magic"))


@fault("a checkpoint with an option of another kind", "--log_step")
def checkpoint_option_kind(place):
    place.resume(lambda state: state["options"].update(log_step="often"))


@fault("a checkpoint whose prefix of captions has a million words", "--caption_prefix")
def checkpoint_prefix_long(place):
    place.resume(lambda state: state["options"].update(caption_prefix="q " * 10**6))


@fault("a run taken up with other training data", "checkpoint.pth.tar")
def checkpoint_other_data(place):
    place.json(lambda records: records.__delitem__(slice(60, None)))
    (place.data / "shapes_train_matches.json").unlink()
    place.resume(lambda state: None)


@fault("a flag that the checkpoint's weights exclude", "--embed_size 32", "checkpoint.pth.tar")
def checkpoint_flag_excluded(place):
    place.resume(lambda state: None, "--embed_size", "32")


@fault("another form of the projections than the checkpoint's", "--head mlp", "checkpoint.pth.tar")
def checkpoint_head_excluded(place):
    place.resume(lambda state: state["options"].__delitem__("head"), "--head", "mlp")


@fault("a checkpoint scored whose statistics are texts", "checkpoint.pth.tar")
def checkpoint_statistics_texts(place):
    path = place.resume(lambda state: state.update(criterion={"positive.count": "many"}))
    place.main = evaluation.main
    place.arguments = [*CPU, str(path), "--data_path", str(place.data)]


# ------------------------------------------------------------------------------------------- flags

@fault("both encoders frozen, and no projections to train", "--freeze both", "--embed_size 0")
def flag_nothing_to_train(place):
    place.arguments += ["--freeze", "both", "--embed_size", "0"]


@fault("an MLP for projections, and no projections", "--head mlp", "--embed_size 0")
def flag_head_without_projections(place):
    place.arguments += ["--head", "mlp", "--embed_size", "0"]


@fault("gradient checkpointing of encoders that are both frozen", "--grad_checkpointing",
       "--freeze both")
def flag_checkpointing_frozen(place):
    place.arguments += ["--freeze", "both", "--grad_checkpointing"]


@fault("--learning_rate nan", "--learning_rate nan")
def flag_nan(place):
    place.arguments += ["--learning_rate", "nan"]


@fault("--log_step 0", "--log_step 0")
def flag_log_step_zero(place):
    place.arguments += ["--log_step", "0"]


@fault("--save_step -1", "--save_step -1")
def flag_save_step_negative(place):
    place.arguments += ["--save_step", "-1"]


@fault("a batch larger than the split", "--batch_size_train 1000")
def flag_batch_too_large(place):
    place.arguments += ["--batch_size_train", "1000", "--queue_size", "1000"]


@fault("--resume of a file that is not there", "--resume")
def flag_resume_gone(place):
    place.arguments += ["--resume", str(place.folder / "nothing")]


@fault("--logger_name under a file", "--logger_name")
def flag_folder_under_a_file(place):
    place.arguments += ["--logger_name", place.file("file", "x") + "/run"]


@fault("--oracle where not all matches are known", "--oracle", "shapes_train_matches.json")
def flag_oracle_unknown(place):
    (place.data / "shapes_train_matches.json").unlink()
    place.arguments += ["--oracle"]


@fault("--oracle positives for a loss that takes one match", "--oracle positives", "--loss triplet")
def flag_oracle_positives(place):
    place.arguments += ["--oracle", "positives", "--loss", "triplet"]


@fault("a learning rate for an encoder that is frozen", "--image_lr 0.001", "--freeze image")
def flag_rate_of_a_frozen_encoder(place):
    place.arguments += ["--image_lr", "1e-3", "--freeze", "image"]


@fault("falls of the learning rate in a schedule that has none", "--lr_update 2",
       "--lr_schedule cosine")
def flag_falls_of_a_cosine(place):
    place.arguments += ["--lr_update", "2", "--lr_schedule", "cosine"]


@fault("--margin auto for a loss without a margin", "--margin auto", "--loss infonce")
def flag_margin_auto_of_infonce(place):
    place.arguments += ["--margin", "auto", "--loss", "infonce"]


@fault("--margin auto for encoders that are no pretrained pair", "--margin auto")
def flag_margin_auto_without_a_pair(place):
    place.arguments += ["--margin", "auto", "--quiet"]


@fault("a run taken up with another recipe", "--recipe clip", "checkpoint.pth.tar")
def flag_recipe_of_another_run(place):
    place.resume(lambda state: None, "--recipe", "clip")


@fault("--posterior evidence for a loss that has no posterior",
       "--posterior evidence", "--loss infonce")
def flag_posterior_of_a_control(place):
    place.arguments += ["--posterior", "evidence", "--loss", "infonce"]


@fault("--posterior evidence where each photo has one caption",
       "--posterior evidence", "shapes_train.json")
def flag_posterior_of_single_captions(place):
    path = place.data / "shapes_train.json"
    records = {record["image"]: record for record in json.loads(path.read_text())}
    path.write_text(json.dumps(list(records.values())))
    (place.data / "shapes_train_matches.json").unlink()
    place.arguments += ["--posterior", "evidence"]


@fault("--test of a run without the oracle, with it", "--oracle exclude", "model_best.pth.tar")
def flag_oracle_in_a_test(place):
    place.arguments = ["--test", "--resume", str(place.finished / "model_best.pth.tar"),
                       "--data_path", str(place.data), *CPU, "--oracle"]


@fault("--ambiguity of a data set that has no dial", "--ambiguity 10", "--dataset flickr")
def flag_ambiguity_of_flickr(place):
    place.arguments += ["--dataset", "flickr", "--ambiguity", "10"]


@fault("a folder that has captions of another --ambiguity", "ambiguity", "data")
def flag_ambiguity_of_a_folder(place):
    place.arguments += ["--ambiguity", "10"]


@fault("--output that is a folder", "--output")
def flag_output_a_folder(place):
    place.embeddings()
    place.arguments += ["--output", str(place.folder)]


# ---------------------------------------------------------------------- embeddings and judgements

@fault("a text named .npz", "--embeddings", "embeddings.npz")
def embeddings_a_text(place):
    place.embeddings().write_text("x")


@fault("a single array", "--embeddings", "embeddings.npz")
def embeddings_a_single_array(place):
    with open(place.embeddings(), "wb") as file:
        np.save(file, np.eye(3))


@fault("an npz cut short", "--embeddings", "embeddings.npz")
def embeddings_cut_short(place):
    path = place.embeddings()
    path.write_bytes(path.read_bytes()[:500])


@fault("an npz that holds pickled objects", "--embeddings", "embeddings.npz")
def embeddings_pickled(place):
    place.embeddings(images=np.array([Evil(place.folder)] * 3, dtype=object))


@fault("an npz with a part named as an array, and none", "--embeddings", "embeddings.npz")
def embeddings_of_bytes(place):
    path = place.embeddings(captions=None)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("captions.npy", b"x")


@fault("an npz without captions", "--embeddings", "embeddings.npz")
def embeddings_without_captions(place):
    place.embeddings(captions=None)


@fault("more captions than embeddings", "--embeddings", "embeddings.npz")
def embeddings_too_many_captions(place):
    place.embeddings(captions=np.array(list("wxyz")))


@fault("embeddings that are texts", "--embeddings", "embeddings.npz")
def embeddings_of_texts(place):
    place.embeddings(image_embeds=np.array([["a"] * 3] * 3))


@fault("a text with a letter that there is none of", "--embeddings", "embeddings.npz")
def embeddings_of_no_letters(place):
    letters = np.full(3, 0xFFFFFFFF, np.uint32).view("<U1")
    place.embeddings(captions=letters)


@fault("a single number for embeddings", "--embeddings", "embeddings.npz")
def embeddings_scalar(place):
    place.embeddings(text_embeds=np.array(1.0))


@fault("an embedding that is NaN", "embeddings.npz")
def embeddings_nan(place):
    place.embeddings(image_embeds=np.eye(3) * np.nan)


@fault("a caption of photo 7 of 3", "embeddings.npz")
def embeddings_photo_out_of_range(place):
    place.embeddings(image_of_text=np.array([0, 1, 7]))


@fault("a prior of 3", "--embeddings", "embeddings.npz")
def embeddings_prior_too_large(place):
    place.embeddings(prior=np.array(3.0))


@fault("a teacher's embeddings of fewer captions", "--embeddings", "embeddings.npz",
       "teacher_embeds")
def teacher_embeds_too_few(place):
    place.embeddings(teacher_embeds=np.eye(3, dtype=np.float16)[:2])


@fault("a teacher's embeddings that are no unit rows", "--embeddings", "embeddings.npz",
       "teacher_embeds")
def teacher_embeds_no_unit_rows(place):
    place.embeddings(teacher_embeds=2 * np.eye(3))


@fault("a teacher's embedding that is NaN", "--embeddings", "embeddings.npz", "teacher_embeds")
def teacher_embeds_nan(place):
    place.embeddings(teacher_embeds=np.eye(3) * np.nan)


@fault("a teacher that nothing is asked of", "--teacher captions", "--judgements")
def teacher_unused(place):
    place.embeddings()
    place.arguments += ["--teacher", "captions"]


@fault("a teacher of the training captions, and no data", "--teacher captions", "--data_path")
def teacher_without_training_captions(place):
    place.embeddings()
    place.arguments += ["--teacher", "captions", "--report", str(place.folder / "report")]


@fault("a teacher that is neither a folder nor a name", "--teacher", "no_teacher")
def teacher_nowhere(place):
    place.embeddings()
    place.arguments += ["--teacher", str(place.folder / "no_teacher"), "--report",
                        str(place.folder / "report")]


@fault("judgements that are a number", "--judgements", "judgements.json")
def judgements_a_number(place):
    place.judgements("judgements.json", "5")


@fault("a judgement without answers", "--judgements", "judgements.json")
def judgements_without_answers(place):
    place.judgements("judgements.json", '[{"image": "a", "caption_of": "b", "caption_no": 0}]')


@fault("a caption's number of 1e999", "--judgements", "judgements.json")
def judgements_infinite_number(place):
    place.judgements("judgements.json",
                     '[{"image": "a", "caption_of": "b", "caption_no": 1e999, "yes": 1, "no": 0}]')


@fault("a line of two columns", "--judgements", "judgements.txt")
def judgements_short_line(place):
    place.judgements("judgements.txt", "a\tb#0\n")
