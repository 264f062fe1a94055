"""Near duplicates: every kind of copy is found, nothing else; the search against all pairs."""

import cv2
import numpy as np
import pytest

from benchmarks.copies import KINDS, write_copies
from vd.config import DataConfig, DecodeConfig
from vd.data.catalog import identify
from vd.data.crops import crop, register, sampling
from vd.data.fingerprints import (
    Fingerprint,
    as_text,
    fingerprint,
    fingerprint_videos,
    from_text,
)
from vd.data.hashes import _MIRROR, WINDOWS, changes_of, codes_of, neighbours
from vd.data.manifest import read_manifest
from vd.data.near_duplicates import compare, find_pairs, near_duplicates_of


def moving(rng, frames=40, side=16, objects=3):
    """Small grey frames in which bright spots wander over a still background."""
    background = rng.integers(40, 160, (side, side))
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    made = np.repeat(background[None].astype(float), frames, 0)
    for _ in range(objects):
        path = rng.uniform(0, side, 2) + np.cumsum(rng.normal(0, 0.6, (frames, 2)), 0)
        for t, (px, py) in enumerate(path % side):
            made[t] += 90 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 5)
    return made.clip(0, 255).astype(np.uint8)


def kept(small):
    """Fingerprints of small frames by name."""
    return {name: Fingerprint(frames, 100.0, 0.0) for name, frames in small.items()}


@pytest.fixture(scope="module")
def copied(clips, tmp_path_factory):
    """Six rendered clips and a copy of each kind, as a data set of two classes."""
    root = tmp_path_factory.mktemp("copied")
    kinds = {}
    for label in ("violent", "nonviolent"):
        (root / "set" / label).mkdir(parents=True)
        for seed, path in enumerate(sorted((clips / "train" / label).iterdir())[:3]):
            original = root / "set" / label / path.name
            original.write_bytes(path.read_bytes())
            for kind, copy in write_copies(path, root / "set" / label, seed):
                kinds[f"{label}/{copy.name}"] = (kind, f"{label}/{path.name}")
    return root / "set", kinds


def fingerprints(root, cache):
    data = DataConfig(root, cache_dir=cache)
    videos = identify(read_manifest(data).videos, cache)
    _, made = fingerprint_videos(videos, data, DecodeConfig())
    return {v.name: made[v.id] for v in videos}


def test_every_kind_of_copy_is_found_and_nothing_else(copied, tmp_path):
    root, kinds = copied
    made = fingerprints(root, tmp_path)
    pairs = find_pairs(made)
    source = {name: name for name in made} | {k: v[1] for k, v in kinds.items()}
    found = {frozenset(p[:2]): p for p in pairs if p.kind == "duplicate"}
    missing = []
    for copy, (kind, original) in kinds.items():
        pair = found.get(frozenset((copy, original)))
        if pair is None:
            missing.append(kind)
        else:
            assert pair.mirrored == (kind == "mirrored" or "all at once" in kind), kind
    # 70 of 72 at least: the strongest crops are at the end of what is searched
    assert len(missing) <= 2
    assert all("cropped" in kind for kind in missing)
    assert {kind for kind, _ in kinds.values()} == set(KINDS)
    assert all(source[p.first] == source[p.second] for p in pairs)


def test_finished_fingerprints_are_not_made_again(copied, tmp_path, monkeypatch):
    root, _ = copied
    first = fingerprints(root, tmp_path)
    monkeypatch.setattr("vd.data.fingerprints.fingerprint", None)  # would raise
    again = fingerprints(root, tmp_path)
    assert first.keys() == again.keys()
    for name, made in first.items():
        np.testing.assert_array_equal(made.small_Fx16x16, again[name].small_Fx16x16)


def test_brightness_and_bars_by_hand():
    images = np.full((3, 100, 200, 3), 200, np.uint8)
    images[:, :10], images[:, -15:], images[:, :, :40] = 0, 0, 0
    made, *_ = fingerprint(images)
    assert made.letterbox == pytest.approx(1 - 75 * 160 / 20_000)
    assert made.brightness == pytest.approx(200 * 75 * 160 / 20_000)
    assert made.small_Fx16x16.shape == (3, 16, 16)
    assert fingerprint(np.zeros((1, 8, 8, 3), np.uint8))[0].letterbox == 1


def test_bars_change_no_fingerprint():
    images = np.random.default_rng(8).integers(0, 256, (9, 64, 48, 3)).astype(np.uint8)
    images[:, 20:30] = 0  # black within the picture
    framed = np.pad(images, ((0, 0), (16, 8), (4, 12), (0, 0)))
    plain, _, _ = fingerprint(images)
    result, _, inside = fingerprint(framed)
    np.testing.assert_array_equal(result.small_Fx16x16, plain.small_Fx16x16)
    assert framed[0][inside].shape == images[0].shape
    later, _, _ = fingerprint(framed // 20, inside)  # a dark scene of the same video
    dark, _, _ = fingerprint(images // 20, (slice(None), slice(None)))
    np.testing.assert_array_equal(later.small_Fx16x16, dark.small_Fx16x16)


def test_the_crop_is_registered():
    rng = np.random.default_rng(9)
    large = cv2.resize(
        rng.uniform(0, 255, (9, 9)), (320, 320), interpolation=cv2.INTER_CUBIC
    )
    window = np.array([0.05, 0.1, 0.9, 0.95])
    left, top, right, bottom = (320 * window).astype(int)
    first, second = (
        cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
        for image in (large, large[top:bottom, left:right])
    )
    start = WINDOWS[np.argmin(np.abs(WINDOWS - window).max(1))]
    result = register(first[None], second[None], start)
    np.testing.assert_allclose(result, window, atol=0.01)
    assert np.abs(start - window).max() > 0.01


@pytest.mark.parametrize("first_is_cropped", [False, True])
def test_a_cropped_and_mirrored_second_half_is_found(first_is_cropped):
    video = moving(np.random.default_rng(10), frames=40)
    window = np.array([0.12, 0.03, 0.97, 0.9])
    cut = crop(video[16:], sampling(window))[:, :, ::-1]
    small = {"whole": video, "cut": cut.round().astype(np.uint8)}
    names = ["cut", "whole"] if first_is_cropped else ["whole", "cut"]
    (pair,) = find_pairs(kept({name: small[name] for name in names}))
    assert [*pair[:3], pair.mirrored] == [*names, "duplicate", True]
    assert pair.shift == (-2.0 if first_is_cropped else 2.0)


def test_a_mirrored_image_has_the_mirrored_code():
    images = np.random.default_rng(0).normal(size=(50, 16, 16))
    np.testing.assert_array_equal(
        codes_of(images[:, :, ::-1]), codes_of(images) ^ _MIRROR
    )


def test_the_shift_is_where_the_second_begins_in_the_first():
    video = moving(np.random.default_rng(1))
    kind, similarity, shift = compare(
        video[:30], video[16:], np.array([[20, 4], [3, 3]])
    )
    assert (kind, shift) == ("duplicate", 2.0)
    assert similarity == pytest.approx(1)
    (pair,) = find_pairs(kept({"a": video[:30], "b": video[16:]}))
    assert (pair.kind, pair.shift, pair.mirrored) == ("duplicate", 2.0, False)


def test_another_moment_of_a_place_is_the_same_scene():
    rng = np.random.default_rng(2)
    still = np.repeat(rng.integers(0, 255, (1, 16, 16)), 40, 0).astype(np.uint8)
    other = still.copy()
    other[20:] = moving(rng, frames=20)
    (pair,) = find_pairs(kept({"a": still, "b": other, "c": moving(rng)}))
    assert pair[:3] == ("a", "b", "same-scene")


def test_videos_too_short_to_change_and_single_colours_do_no_harm():
    rng = np.random.default_rng(3)
    flat = np.full((10, 16, 16), 7, np.uint8)
    small = {"flat": flat, "also": flat.copy(), "short": moving(rng, frames=2)}
    assert find_pairs(kept(small)) == []
    assert find_pairs({}) == []
    assert find_pairs(kept({"one": moving(rng)})) == []


def test_neighbours_are_those_of_a_plain_search():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 256, (6000, 16)).astype(np.uint8)  # an inverted file of 15
    queries = codes[:500].copy()
    bits = rng.integers(0, 128, (500, 6))
    for row, flipped in enumerate(bits):
        for bit in flipped:
            queries[row, bit // 8] ^= 1 << bit % 8
    rows, columns = neighbours(codes, queries, np.full(6000, 24))
    apart = np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(2)
    expected = set(zip(*np.nonzero(apart <= 24), strict=True))
    found = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert found <= expected
    assert len(found) >= 0.99 * len(expected)


def test_changes_are_over_half_a_second():
    video = moving(np.random.default_rng(5), frames=6)
    expected = video[4:].astype(float) - video[:2]
    np.testing.assert_array_equal(changes_of(video), expected)


def test_what_is_known_is_compared_with_the_others_alone():
    rng = np.random.default_rng(11)
    known = {str(i): moving(rng) for i in range(4)}
    known["again"] = known["0"].copy()
    others = {"copy": known["1"][:, :, ::-1].copy(), "cut": known["2"][8:]}
    others |= {"new": moving(rng), "1": moving(rng)}
    assert near_duplicates_of(known, others) == {"copy", "cut"}
    assert near_duplicates_of({}, others) == near_duplicates_of(known, {}) == set()


def test_many_copies_do_not_hide_each_other_from_what_is_known():
    video = moving(np.random.default_rng(13))
    flat = {"flat": np.full((10, 16, 16), 7, np.uint8)}
    copies = {str(n): video.copy() for n in range(40)}
    assert near_duplicates_of({"seen": video}, copies) == copies.keys()
    assert near_duplicates_of(flat, copies) == near_duplicates_of(copies, flat) == set()


def test_a_fingerprint_as_text_loses_nothing():
    small = moving(np.random.default_rng(12))
    text = as_text(small)
    np.testing.assert_array_equal(from_text(text), small)
    assert len(text) < small.size


def test_one_moving_graphic_over_many_places_is_not_the_same_footage():
    rng = np.random.default_rng(6)
    ticker = moving(rng, frames=40)[:, 13:]
    small = {f"{i}": moving(rng) for i in range(8)}
    for frames in small.values():
        frames[:] = frames[:, :, :] // 4 + rng.integers(0, 190, (1, 16, 16)) // 2
        frames[:, 13:] = np.where(np.arange(40)[:, None, None] % 8 < 4, ticker, 255)
    pairs = find_pairs(kept(small))
    assert not [pair for pair in pairs if pair.kind == "duplicate"]


def test_a_second_of_a_video_is_found_in_it():
    video = moving(np.random.default_rng(7), frames=24)
    (pair,) = find_pairs(kept({"whole": video, "cut": video[8:15]}))
    assert (pair.kind, pair.shift) == ("duplicate", 1.0)
