"""Prediction of frames that a program has decoded itself."""

import json
import weakref
from fractions import Fraction

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.broken import noisy_frames, render
from tests.test_live import rgb_frames
from vd.errors import VdError
from vd.predict.predictor import load


@pytest.fixture(scope="module")
def detector():
    """The one in the box."""
    return load()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six seconds, more than a clip of 32 frames has."""
    images = noisy_frames(150, 180, 240)
    return render(tmp_path_factory.mktemp("clip") / "clip.mp4", images, b_frames=2)


def only(predictions):
    (prediction,) = predictions
    return prediction


def test_frames_of_a_file_give_about_its_prediction_however_they_are_given(
    detector, clip
):
    file = only(detector.predict(clip))
    frames_FxHxWx3 = np.stack([frame for frame, _ in rgb_frames(clip)])
    frames = only(detector.predict(frames_FxHxWx3, 25))
    np.testing.assert_array_equal(*(p.timeline.seconds_W for p in (file, frames)))
    np.testing.assert_allclose(
        frames.timeline.probability_W, file.timeline.probability_W, rtol=0, atol=0.01
    )
    assert frames.probability == pytest.approx(file.probability, abs=0.01)
    assert list(frames.to_dict()) == list(file.to_dict())
    expected = {
        "path": "frames", "outcome": "used", "reason": "", "frames": 150, "duration": 6.0,
        "gaps": [],
    }  # fmt: skip
    assert {key: frames.to_dict()[key] for key in expected} == expected
    bgr = frames_FxHxWx3[..., ::-1].copy()
    again = only(detector.predict((frame[..., ::-1] for frame in bgr), 25))
    assert again.to_dict() == frames.to_dict()


def test_frames_are_taken_once_and_not_kept(detector):
    alive, most, taken = set(), 0, 0

    def frames():
        nonlocal most, taken
        for frame in noisy_frames(400):
            image = frame.copy()
            alive.add(taken)
            weakref.finalize(image, alive.remove, taken)
            taken += 1
            most = max(most, len(alive))
            yield image

    prediction = only(detector.predict(frames(), fps=20))
    assert (taken, prediction.outcome.frames, prediction.duration) == (400, 400, 20.0)
    assert most <= 3


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), np.float32(25)])
def test_a_rate_may_be_any_number(detector, fps):
    prediction = only(detector.predict(noisy_frames(60), fps))
    duration = json.loads(json.dumps(prediction.to_dict()))["duration"]
    assert duration == pytest.approx(60 / float(fps))


def test_too_few_frames_are_too_short(detector):
    for count in (0, 1):
        prediction = only(detector.predict(list(noisy_frames(count)), 25))
        assert prediction.probability is None
        assert prediction.to_dict()["reason"] == "too-short"
        assert prediction.to_dict()["frames"] == count


def test_what_is_neither_files_nor_frames_is_one_sentence(detector, clip):
    frames = list(noisy_frames(3))
    for source in (frames, np.stack(frames), iter(frames)):
        with pytest.raises(VdError, match="give frames together with fps"):
            detector.predict(source)
    for options in ({"fps": 25}, {"fps": 25, "between": (0.0, 1.0)}):
        with pytest.raises(VdError, match="leave fps out for files"):
            detector.predict(clip, **options)
    for fps in (0, float("nan"), float("inf")):
        with pytest.raises(VdError, match="frames a second; give their rate"):
            only(detector.predict(frames, fps))
    with pytest.raises(VdError, match=r"predict\(\) was given an array of float64"):
        only(detector.predict([frame / 255 for frame in frames], 25))


NOTEBOOK = """
import vd
import numpy as np
detector = vd.load()
for prediction in detector.predict({path!r}):
    print(prediction.probability)
(prediction,) = detector.predict(np.zeros((50, 48, 64, 3), np.uint8), 25)
prediction.to_dict()
"""


@pytest.mark.slow
def test_a_notebook_loads_and_predicts(detector, clip):
    cell = nbformat.v4.new_code_cell(NOTEBOOK.format(path=str(clip)))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=300).execute()
    outputs = notebook.cells[0].outputs
    printed = [o.text for o in outputs if o.get("name") == "stdout"]
    (shown,) = (o.data["text/plain"] for o in outputs if "data" in o)
    assert float("".join(printed)) == only(detector.predict(clip)).probability
    assert "'outcome': 'used'" in shown
