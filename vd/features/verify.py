"""Every stored record read against its index; damaged ones are removed, and said."""

from collections.abc import Sequence

from vd.console import say, track
from vd.data.manifest import Video
from vd.features.store import FeatureStore


def verify_store(store: FeatureStore, videos: Sequence[Video]) -> list[str]:
    """Check the whole store, say what was found, return the ids of damaged videos.

    A record must have the bytes, and be of the video, view and part, that the index says,
    and a shard's file as many of them. A damaged shard is emptied, after its good videos are
    written to a new one; the damaged ones are lacking from then on. The caller holds the
    lock. `videos` give their names.
    """
    count, shards = len(store.rows), len(store.lengths)
    damaged: list[str] = []
    rewritten = 0
    with track("verifying", count, "videos") as ticker:
        for number in range(shards):
            rows = store.shard_rows(number)
            bad = set()
            for stored, _ in rows:
                if store.read_records(number, stored) is None:
                    bad.add(stored.id)
                ticker.advance()
            if bad or not store.is_counted(number):
                good = [item for item in rows if item[0].id not in bad]
                store.replace(number, good)
                damaged += bad
                rewritten += 1
    store.write_metadata()
    if rewritten:
        say(
            f"verified: {rewritten} of {shards} shards did not hold what their index says"
        )
    if not damaged:
        say(f"verified: the records of {count} videos are as they were written")
        return []
    names = [video.name for video in videos if video.id in set(damaged)]
    told = f" ({names[0]!r} for one)" if names else ""
    say(
        f"verified: of {count} videos {len(damaged)} have damaged records{told}: they were "
        "removed, and those of this data set are extracted again"
    )
    return damaged
