"""Faults of tar shards: of their names, of the tars, and of what is in them."""

import gzip
import tarfile

from helpers.faults import fault
from helpers.shards import PHOTO, pairs, write_shard


def train_on(place, pattern, *more):
    """Train on shards of own data; val and test are in another one."""
    other = write_shard(place.folder / "held_out" / "0.tar", pairs(50, 60))
    last = write_shard(place.folder / "held_out" / "1.tar", pairs(60, 70))
    place.arguments += ["--dataset", "custom", "--text_encoder", "tiny-bert", "--data_path",
                        str(place.folder / pattern), "--val_path", str(other), "--test_path",
                        str(last), *more]


def shard_of(place, files, *more):
    """Train on a shard of these files, behind twenty pairs; its path."""
    path = write_shard(place.folder / "s" / "0.tar", pairs(0, 20) + files)
    train_on(place, "s/0.tar", *more)
    return path


@fault("a range of shards of which one is missing", "1 of 2 shards", "1.tar")
def shard_missing(place):
    shard_of(place, [])
    place.arguments[place.arguments.index("--val_path") - 1] = str(place.folder / "s/{0..1}.tar")


@fault("braces that are neither a range nor a choice", "{a..c}", "neither a range")
def shards_braces(place):
    train_on(place, "s/{a..c}.tar")


@fault("more shards than anybody has", "100,000,000", "more than")
def shards_too_many(place):
    train_on(place, "s/{0..9999}-{0..9999}.tar")


@fault("a shard that is named twice", "one is named twice")
def shard_twice(place):
    shard_of(place, [])
    place.arguments[place.arguments.index("--val_path") - 1] = str(place.folder / "s/{0,0}.tar")


@fault("braces that the shell has spread", "put the pattern of shards into quotes")
def shards_without_quotes(place):
    shard_of(place, [])
    place.arguments.insert(place.arguments.index("--val_path"), "s/1.tar")


@fault("a shard cut short in a photo", "0.tar is cut short inside 000013.jpg")
def shard_cut_short(place):
    path = shard_of(place, [])
    with tarfile.open(path) as tar:
        end = tar.getmember("000013.jpg").offset_data + 100
    path.write_bytes(path.read_bytes()[:end])


@fault("a shard cut short between two files", "0.tar is cut short or broken behind 000012.txt")
def shard_cut_between(place):
    path = shard_of(place, [])
    with tarfile.open(path) as tar:
        end = tar.getmember("000013.jpg").offset
    path.write_bytes(path.read_bytes()[:end])


@fault("a compressed shard", "0.tar is compressed (gzip): unpack it first")
def shard_compressed(place):
    path = shard_of(place, [])
    path.write_bytes(gzip.compress(path.read_bytes()))


@fault("a text named .tar", "0.tar is no tar file")
def shard_a_text(place):
    shard_of(place, []).write_text("no tar" * 1000)


@fault("an empty file named .tar", "0.tar is empty")
def shard_empty(place):
    shard_of(place, []).write_bytes(b"")


@fault("a shard with a link in place of a photo", "0.tar: b.jpg is a link")
def shard_of_links(place):
    with tarfile.open(shard_of(place, []), "a") as tar:
        member = tarfile.TarInfo("b.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "000000.jpg"
        tar.addfile(member)


@fault("shards without a caption", "no photo has a caption beside it", "--caption_column")
def shard_without_captions(place):
    write_shard(place.folder / "s" / "0.tar", [("a.jpg", PHOTO), ("a.json", '{"alt": "x"}')])
    train_on(place, "s/0.tar")


@fault("captions in a shard under two keys", "a.json has captions under 'caption', 'text'",
       "--caption_column")
def shard_of_two_keys(place):
    shard_of(place, [("a.jpg", PHOTO), ("a.json", '{"caption": "x", "text": "y"}')])


@fault("a column of photos named for shards", "--image_column file", "leave it out")
def shard_image_column(place):
    shard_of(place, [], "--image_column", "file")


@fault("shards as val that are trained on", "val would be", "--val_path")
def shard_val_as_train(place):
    path = shard_of(place, [])
    place.arguments += ["--val_path", str(path)]


@fault("a spoilt photo in a shard that is to be scored", "1 of 11 samples", "bad.jpg", "cut short")
def shard_val_spoilt(place):
    shard_of(place, [])
    write_shard(place.folder / "held_out" / "0.tar", [*pairs(50, 60), ("bad.jpg", PHOTO[:-9]),
                                                      ("bad.txt", "x")])


@fault("shapes in shards", "0.tar: the shapes dataset is made in a folder")
def shard_of_shapes(place):
    path = shard_of(place, [])
    place.arguments += ["--dataset", "shapes", "--data_path", str(path)]


@fault("a --val_path that is not there", "--val_path", "neither a folder of photos nor tar shards")
def val_path_nothing(place):
    shard_of(place, [])
    place.arguments += ["--val_path", str(place.folder / "nothing")]
