"""The former place of `vd.models.head`: an import from here names the new path."""

raise ImportError(
    "vd.model has moved: import Head from vd.models.head, and Detector from "
    "vd.models.detector."
)
