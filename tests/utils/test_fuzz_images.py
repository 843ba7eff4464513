"""Whatever an image file holds, it is an RGB image, or one line that says why not."""

import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovml import UserError
from ovml.utils.images import load_image

FORMATS = {"PNG": "RGBA", "JPEG": "RGB", "WEBP": "RGB", "GIF": "P", "BMP": "RGB", "TIFF": "I;16"}


def encoded(name, mode):
    image = Image.effect_mandelbrot((24, 17), (-2, -1.5, 1, 1), 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    more = {"exif": exif} if name in ("PNG", "JPEG", "WEBP") else {}
    image.convert(mode).save(buffer, name, **more)
    return buffer.getvalue()


WHOLE = {name: encoded(name, mode) for name, mode in FORMATS.items()}
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8)


@settings(max_examples=100, deadline=None)
@example(name="PNG", changes=[], cut=2000, added=b"")
@given(
    name=st.sampled_from(list(FORMATS)),
    changes=CHANGES,
    cut=st.integers(0, 2000) | st.just(2000),
    added=st.binary(max_size=8),
)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it found damaged
def test_bytes_are_an_rgb_image_or_one_line(name, changes, cut, added):
    content = bytearray(WHOLE[name])
    for place, value in changes:
        content[place % len(content)] = value
    try:
        image, message = load_image(bytes(content[:cut] + added)), "image: "
    except UserError as error:
        image, message = Image.new("RGB", (1, 1)), str(error)
    assert image.mode == "RGB"
    assert min(image.size) >= 1
    assert message.startswith("image: ")
    assert len(message.splitlines()) == 1
