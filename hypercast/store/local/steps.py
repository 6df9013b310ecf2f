"""The steps at which a writer can be killed or a disk can be full, by name, so that tests can stop at each."""

from enum import StrEnum


class Step(StrEnum):
    """In the order of a commit; compaction goes through all of them, a pointer's move through the manifest's."""

    LOCKED = "locked"
    SEGMENT_BEGUN = "segment-begun"
    SEGMENT_ROWS = "segment-rows"
    SEGMENT_WRITTEN = "segment-written"
    SEGMENT_KEPT = "segment-kept"
    MANIFEST_BEGUN = "manifest-begun"
    MANIFEST_WRITTEN = "manifest-written"
    MANIFEST_MOVED = "manifest-moved"
    FILE_REMOVED = "file-removed"


def reached(step: Step) -> None:
    """Called just after ``step``; does nothing, until a test puts something else in its place."""
