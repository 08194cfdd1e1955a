"""Tar shards for tests, written by the standard library and by hand."""

import io
import json
import tarfile

from PIL import Image

import data


def jpeg(colour="red", size=16, kind="JPEG"):
    """The bytes of a small photo."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, kind)
    return buffer.getvalue()


PHOTO = jpeg()


def write_shard(path, files, layout=tarfile.GNU_FORMAT):
    """A tar of (name, bytes or text), in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as tar:
        for name, content in files:
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pairs(start, end, photo=PHOTO):
    """The files of samples 000000 and so on, a photo and a caption each."""
    return [file for number in range(start, end)
            for file in ((f"{number:06d}.jpg", photo), (f"{number:06d}.txt", f"photo {number}"))]


def pack(folder, split, shards, per_shard, kind="txt"):
    """Put a split of the embedded dataset into shards `<split>-0.tar` and so on, photo by photo in
    its own order; `kind` says where the captions go. The pattern that names them all."""
    loaded = data.read_split("shapes", split, folder)
    texts = [[] for _ in loaded.images]
    for text, image in zip(loaded.captions, loaded.image_of_text.tolist()):
        texts[image].append(text)
    samples = [(f"{number:06d}", (folder / name).read_bytes(), captions)
               for number, (name, captions) in enumerate(zip(loaded.images, texts))]
    for shard in range(-(-len(samples) // per_shard)):
        files = []
        for key, photo, captions in samples[shard * per_shard : (shard + 1) * per_shard]:
            content = captions[0] if kind == "txt" else json.dumps({"captions": captions})
            files += [(f"{key}.png", photo), (f"{key}.{kind}", content)]
        write_shard(shards / f"{split}-{shard}.tar", files)
    return shards / f"{split}-{{0..{shard}}}.tar"
