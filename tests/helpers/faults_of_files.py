"""Faults of checkpoints, flags, embeddings and judgements."""

import zipfile

import numpy as np
import torch
from helpers.faults import Evil, fault

import evaluation

# ------------------------------------------------------------------------------------- checkpoints

@fault("checkpoint empty", "an empty file", "checkpoint.pth.tar is no checkpoint")
def _(place):
    place.resume(lambda state: b"")


@fault("checkpoint cut short", "a checkpoint cut short", "cut short")
def _(place):
    place.resume(lambda state: (place.finished / "checkpoint.pth.tar").read_bytes()[:100_000])


@fault("checkpoint bit", "a checkpoint with one flipped bit in a weight", "damaged")
def _(place):
    content = bytearray((place.finished / "checkpoint.pth.tar").read_bytes())
    content[len(content) // 2] ^= 1
    place.resume(lambda state: bytes(content))


@fault("checkpoint text", "a text", "is no checkpoint")
def _(place):
    place.resume(lambda state: b"some text\n" * 100)


@fault("checkpoint code", "a checkpoint that would run code", "could run code; it is not loaded")
def _(place):
    place.resume(lambda state: state.update(extra=Evil(place.folder)))


@fault("checkpoint other zip", "a zip file of something else", "is no checkpoint")
def _(place):
    path = place.resume(lambda state: b"")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "x")


@fault("checkpoint list", "a list of tensors", "neither a checkpoint of this program")
def _(place):
    place.resume(lambda state: [torch.zeros(2)])


@fault("checkpoint other", "another program's checkpoint", "neither a checkpoint of this program")
def _(place):
    place.resume(lambda state: {"state_dict": {"weight": torch.zeros(2)}})


@fault("checkpoint no model", "a checkpoint without its model", "lacks 'model'")
def _(place):
    place.resume(lambda state: state.pop("model") and None)


@fault("checkpoint model", "a checkpoint whose weights are numbers", "not all of its weights are")
def _(place):
    place.resume(lambda state: state.update(model=dict.fromkeys(state["model"], 1)))


@fault("checkpoint shape", "a checkpoint with a weight of another shape", "does not fit",
       "other shape")
def _(place):
    place.resume(lambda state: state["model"].update(
        {"image_projection.weight": torch.zeros(2, 2)}))


@fault("checkpoint no rng", "a checkpoint without random state", "no whole checkpoint", "rng")
def _(place):
    place.resume(lambda state: state.pop("rng") is None or None)


@fault("checkpoint optimizer", "a checkpoint with another optimizer's state", "no whole checkpoint")
def _(place):
    place.resume(lambda state: state.update(optimizer={"state": {}, "param_groups": []}))


@fault("checkpoint epoch", "a checkpoint whose epoch is a text", "no whole checkpoint", "epoch")
def _(place):
    place.resume(lambda state: state.update(epoch="one"))


@fault("checkpoint option", "a checkpoint with an option of no sense", "--loss", "one of fne")
def _(place):
    place.resume(lambda state: state["options"].update(loss="magic"))


@fault("checkpoint option kind", "a checkpoint with an option of another kind", "--log_step")
def _(place):
    place.resume(lambda state: state["options"].update(log_step="often"))


@fault("checkpoint other data", "a run taken up with other training data", "training split now has")
def _(place):
    place.json(lambda records: records.__delitem__(slice(60, None)))
    (place.data / "shapes_train_matches.json").unlink()
    place.resume(lambda state: None, "--data_path", str(place.data))


@fault("checkpoint flag", "a flag that the checkpoint's weights exclude", "--embed_size 32")
def _(place):
    place.resume(lambda state: None, "--embed_size", "32")


@fault("checkpoint scored", "a checkpoint scored whose statistics are texts", "statistics")
def _(place):
    path = place.resume(lambda state: state.update(criterion={"positive.count": "many"}))
    place.main, place.arguments = evaluation.main, [str(path)]


# ------------------------------------------------------------------------------------------- flags

@fault("flag nan", "--learning_rate nan", "--learning_rate nan")
def _(place):
    place.arguments += ["--learning_rate", "nan"]


@fault("flag log step", "--log_step 0", "--log_step 0: must be at least 1")
def _(place):
    place.arguments += ["--log_step", "0"]


@fault("flag save step", "--save_step -1", "--save_step -1")
def _(place):
    place.arguments += ["--save_step", "-1"]


@fault("flag batch", "a batch larger than the split", "--batch_size_train")
def _(place):
    place.arguments += ["--batch_size_train", "1000", "--queue_size", "1000"]


@fault("flag resume", "--resume of a file that is not there", "no checkpoint", "--resume")
def _(place):
    place.arguments += ["--resume", str(place.folder / "nothing")]


@fault("flag folder", "--logger_name under a file", "--logger_name", "cannot be written")
def _(place):
    place.arguments += ["--logger_name", place.file("file", "x") + "/run"]


@fault("flag output", "--output that is a folder", "cannot be written")
def _(place):
    place.embeddings()
    place.arguments += ["--output", str(place.folder)]


# ---------------------------------------------------------------------- embeddings and judgements

@fault("embeddings text", "a text named .npz", "no npz file")
def _(place):
    place.embeddings().write_text("x")


@fault("embeddings npy", "a single array", "no npz file")
def _(place):
    with open(place.embeddings(), "wb") as file:
        np.save(file, np.eye(3))


@fault("embeddings cut short", "an npz cut short", "no npz file")
def _(place):
    path = place.embeddings()
    path.write_bytes(path.read_bytes()[:500])


@fault("embeddings pickle", "an npz that holds pickled objects", "no npz file")
def _(place):
    place.embeddings(images=np.array([Evil(place.folder)] * 3, dtype=object))


@fault("embeddings lack", "an npz without captions", "lacks an array", "captions")
def _(place):
    place.embeddings(captions=None)


@fault("embeddings count", "more captions than embeddings", "do not agree")
def _(place):
    place.embeddings(captions=np.array(list("wxyz")))


@fault("embeddings text kind", "embeddings that are texts", "image_embeds is <U1")
def _(place):
    place.embeddings(image_embeds=np.array([["a"] * 3] * 3))


@fault("embeddings scalar", "a single number for embeddings", "text_embeds is float64 of shape ()")
def _(place):
    place.embeddings(text_embeds=np.array(1.0))


@fault("embeddings nan", "an embedding that is NaN", "NaN or infinity")
def _(place):
    place.embeddings(image_embeds=np.eye(3) * np.nan)


@fault("embeddings photo", "a caption of photo 7 of 3", "image_of_text")
def _(place):
    place.embeddings(image_of_text=np.array([0, 1, 7]))


@fault("embeddings prior", "a prior of 3", "prior must lie between 0 and 1")
def _(place):
    place.embeddings(prior=np.array(3.0))


@fault("judgements number", "judgements that are a number", "--judgements", "not a list")
def _(place):
    place.judgements("judgements.json", "5")


@fault("judgements record", "a judgement without answers", "record 0")
def _(place):
    place.judgements("judgements.json", '[{"image": "a", "caption_of": "b", "caption_no": 0}]')


@fault("judgements infinite", "a caption's number of 1e999", "record 0")
def _(place):
    place.judgements("judgements.json",
                     '[{"image": "a", "caption_of": "b", "caption_no": 1e999, "yes": 1, "no": 0}]')


@fault("judgements line", "a line of two columns", "line 1")
def _(place):
    place.judgements("judgements.txt", "a\tb#0\n")
