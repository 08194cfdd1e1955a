"""The update of an index: which photos are encoded, what is kept, and how it is resumed."""

import errno
import os
import signal
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import expect_exit
from helpers.stopping import in_a_child, status_of

from common import locks
from common.errors import InputError, Stopped, exit_on_input_error
from searching import update
from searching.encoding import EncodedBatch, Fault
from searching.index import Origin, read_index
from searching.update import update_index

DIM = 4


def embedding(name, stat):
    """Return an embedding that depends on a photo's name and size, so that a wrong row shows."""
    seed = sum(map(ord, name)) * 1_000 + stat[0]
    return F.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)), dim=0)


class Encoder:
    """A stand-in for the model that records which photos it encodes, two at a time.

    Args:
        found: size and time of each photo.
        broken: names of photos with a permanent fault.
        unreadable: names of photos with a fault that may pass.
        after_batch: is called after each batch.
    """

    def __init__(self, found, broken=(), unreadable=(), after_batch=lambda: None):
        self.found, self.broken, self.unreadable = found, broken, unreadable
        self.after_batch = after_batch
        self.seen = []

    def __call__(self, photos):
        for start in range(0, len(photos), 2):
            names = [photo.name for photo in photos[start : start + 2]]
            self.seen += names
            indices, embeds, faults = [], [], []
            for index, name in enumerate(names, start):
                if name in self.broken or name in self.unreadable:
                    faults.append(Fault(index, f"photo {name} is bad", name in self.broken))
                else:
                    indices.append(index)
                    embeds.append(embedding(name, self.found[name]))
            rows = torch.stack(embeds) if embeds else torch.empty(0, DIM)
            yield EncodedBatch(indices, rows, faults)
            self.after_batch()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "index"


@pytest.fixture
def bring(place):
    """A function that updates the index, compares all its rows, and returns the encoder."""
    def call(found, **settings):
        encoder = Encoder(found, **settings)
        index = update_index(place, origin_of(place), found, DIM, encoder)
        assert index.photos.names == sorted(found.keys() - {*encoder.broken, *encoder.unreadable})
        for name, row in zip(index.photos.names, index.embeds):
            assert torch.equal(row, embedding(name, found[name]))
        return encoder

    return call


def origin_of(place):
    return Origin("model", place.parent / "photos")


def photos(*numbers):
    return {f"{number:03}.jpg": (number, 10 * number) for number in numbers}


def test_only_new_and_changed_photos_are_encoded(bring, place):
    found = photos(*range(7))
    assert bring(found).seen == list(found)
    written = place.stat().st_mtime_ns
    assert bring(found).seen == [] and place.stat().st_mtime_ns == written
    found |= photos(20)
    found["003.jpg"] = (99, 30)  # another size
    found["004.jpg"] = (4, 41)  # another time
    assert bring(found).seen == ["003.jpg", "004.jpg", "020.jpg"]
    assert bring(found).seen == []


def test_vanished_photos_are_dropped(bring, place):
    bring(photos(*range(6)))
    assert bring(photos(1, 4)).seen == []
    assert read_index(place, origin_of(place), DIM).photos.names == ["001.jpg", "004.jpg"]
    assert bring(photos(1, 2, 4)).seen == ["002.jpg"]  # back again: nothing is left of it


def test_a_broken_photo_is_named_once_until_it_changes(bring, capsys):
    found = photos(*range(5))
    bring(found, broken=["002.jpg"])
    assert capsys.readouterr().err.count("002.jpg") == 1
    assert bring(found, broken=["002.jpg"]).seen == []
    assert "002.jpg" not in capsys.readouterr().err
    found["002.jpg"] = (2, 21)
    assert bring(found).seen == ["002.jpg"]


def test_a_fault_that_may_pass_is_tried_again(bring, capsys):
    """For example, a photo without read permission is not broken."""
    found = photos(*range(3))
    for _ in range(2):
        assert "001.jpg" in bring(found, unreadable=["001.jpg"]).seen
        assert capsys.readouterr().err.count("001.jpg") == 1
    assert bring(found).seen == ["001.jpg"]


def test_an_index_of_broken_photos_alone_is_current(bring):
    found = photos(1, 2)
    bring(found, broken=list(found))
    assert bring(found, broken=list(found)).seen == []


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_encoded_photos(bring, place, capsys, number, status):
    """The signal comes after three batches; the fourth is finished."""
    found, batches = photos(*range(10)), []

    def after_batch():
        batches.append(1)
        if len(batches) == 3:
            os.kill(os.getpid(), number)

    def main(arguments):
        with exit_on_input_error():
            bring(found, after_batch=after_batch)

    expect_exit([], status, capsys, ["8 of 10", str(place)], main)
    assert bring(found).seen == list(found)[8:]


def test_an_error_keeps_the_encoded_photos(bring):
    def fail():
        raise RuntimeError("DataLoader worker (pid 5) was killed")

    found = photos(*range(6))
    with pytest.raises(RuntimeError):
        bring(found, after_batch=fail)
    assert bring(found).seen == list(found)[2:]


@pytest.mark.parametrize("after", [1, 2, 4])
def test_after_sigkill_the_update_goes_on_from_the_last_save(bring, place, monkeypatch, after):
    """The signal comes right after a batch; the index is saved after each batch."""
    monkeypatch.setattr(update, "SAVE_EVERY", -1)
    monkeypatch.setattr(update, "SAVE_SHARE", 1e9)
    found, batches = photos(*range(10)), []

    def kill():
        batches.append(1)
        if len(batches) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(in_a_child(lambda: bring(found, after_batch=kill))) == -signal.SIGKILL
    assert len(read_index(place, origin_of(place), DIM).photos.names) == 2 * after
    assert bring(found).seen == list(found)[2 * after :]
    assert not list(place.parent.glob("*.part"))


def test_after_sigkill_during_a_save_the_last_index_stays(bring, place, monkeypatch):
    bring(photos(*range(4)))

    def killed(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    child = in_a_child(lambda: (monkeypatch.setattr(os, "replace", killed),
                                bring(photos(*range(8)))))
    assert status_of(child) == -signal.SIGKILL
    assert bring(photos(*range(8))).seen == list(photos(4, 5, 6, 7))


def test_saving_takes_a_small_share_of_the_time(place, monkeypatch):
    """With a slow disk the index is saved less often."""
    clock, saves = [0.0], []
    monkeypatch.setattr(update.time, "monotonic", lambda: clock[0])
    write_index = update.write_index

    def slow_write(*arguments):
        saves.append(clock[0])
        clock[0] += 10.0
        write_index(*arguments)

    def tick():
        clock[0] += 5.0

    monkeypatch.setattr(update, "write_index", slow_write)
    found = photos(*range(400))
    update_index(place, origin_of(place), found, DIM, Encoder(found, after_batch=tick))
    gaps = [later - earlier for earlier, later in zip(saves, saves[1:-1])]
    assert len(saves) > 3 and all(gap >= 10 / update.SAVE_SHARE for gap in gaps)


def test_two_updates_at_once_encode_each_photo_once(bring, place, capsys):
    """The second update waits for the first, says so, and then has nothing to encode."""
    found = photos(*range(6))
    child = in_a_child(lambda: bring(found, after_batch=lambda: time.sleep(0.3)))
    while not (place.parent / "index.lock").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert bring(found).seen == []
    line = capsys.readouterr().err
    assert f"process {child}" in line and str(place) in line and line.count("\n") == 1
    assert status_of(child) == 0


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    child = in_a_child(lambda: (locks.lock(tmp_path / "x"), time.sleep(60)))
    while not (tmp_path / "x").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(locks.LockHeld, match=str(child)):
        locks.lock(tmp_path / "x")
    holders = []
    threading.Timer(0.3, os.kill, (child, signal.SIGKILL)).start()
    locks.wait_for_lock(tmp_path / "x", holders.append, 0.05).close()
    assert holders == [f"process {child}"] and status_of(child) == -signal.SIGKILL


def test_an_index_that_cannot_be_written_is_refused_before_encoding(bring, place, monkeypatch):
    """An update that encodes nothing is still possible."""
    bring(photos(1, 2, 3))

    def refuse(path):
        raise InputError(f"--index {path} cannot be written")

    monkeypatch.setattr(update, "check_writable", refuse)
    assert bring(photos(1, 2, 3)).seen == []
    assert bring(photos(1, 3)).seen == []  # one has vanished
    encoder = Encoder(photos(1, 2, 3, 4))
    with pytest.raises(InputError, match=f"--index {place}"):
        update_index(place, origin_of(place), photos(1, 2, 3, 4), DIM, encoder)
    assert encoder.seen == []


def test_a_missing_folder_cannot_be_written(place):
    with pytest.raises(InputError, match="--index .*nothing"):
        update.check_writable(place / "nothing" / "index")


def test_on_a_full_disk_the_last_index_stays(bring, place):
    found = photos(1, 2)
    bring(found)
    before = place.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=f"--index {place}"):
            bring(photos(1, 2, 3, 4, 5, 6))
    assert place.read_bytes() == before and not list(place.parent.glob("*.part"))
    assert bring(found).seen == []


def test_after_a_stop_sigterm_has_its_usual_effect(bring):
    with pytest.raises(Stopped):
        bring(photos(*range(4)), after_batch=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_that_vanishes_meanwhile_is_named(bring, place):
    """For example a network drive. None of its photos is recorded as broken."""
    found = photos(*range(8))

    def lose():
        if (place.parent / "photos").exists():
            (place.parent / "photos").rmdir()

    names = [f"{number:03}.jpg" for number in range(2, 8)]
    encoder = Encoder(found, unreadable=names, after_batch=lose)
    with pytest.raises(InputError, match=f"--photos {place.parent / 'photos'}"):
        update_index(place, origin_of(place), found, DIM, encoder)
    (place.parent / "photos").mkdir()
    assert bring(found).seen == list(found)[2:]
