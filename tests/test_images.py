"""Folders of pictures, channels first and last, and the scale of pixels."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ppgen import cli, data
from ppgen.data.files.images import channels_first, describe_images
from ppgen.errors import PpgenError

GREY = np.random.default_rng(0).integers(0, 256, (6, 7, 9), dtype=np.uint8)  # odd, and no square
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 7, 9, 3), dtype=np.uint8)


def write(folder, pictures, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}{suffix}")
    return folder


def test_pictures_are_read_as_bytes_with_channels_first(tmp_path):
    grey, colour = (data.load(write(tmp_path / n, own)) for n, own in (("g", GREY), ("c", COLOUR)))
    assert grey["x"].dtype == torch.uint8 and np.array_equal(grey["x"], GREY) and list(grey) == ["x"]
    assert np.array_equal(colour["x"], COLOUR.transpose(0, 3, 1, 2))
    assert data.splits(tmp_path / "g") == ()
    smooth = np.repeat(np.linspace(0, 255, 9).astype(np.uint8)[None, None], 7, 1)
    jpg = data.load(write(tmp_path / "j", smooth, ".JPG"))["x"].numpy().astype(int)
    assert np.abs(jpg - smooth).max() < 8


def test_folders_of_pictures_are_labels(tmp_path):
    for i, name in enumerate(("dog", "cat")):
        write(tmp_path / name, GREY[3 * i : 3 * i + 3])
    found = data.load(tmp_path)
    assert found.types["y"].levels == ("cat", "dog") and found["y"].tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(found["x"], np.concatenate([GREY[3:], GREY[:3]]))


def test_grey_among_colour_is_said(tmp_path, caplog):
    write(tmp_path, [COLOUR[0], GREY[1]])
    assert (
        np.array_equal(data.load(tmp_path)["x"][1], np.stack([GREY[1]] * 3))
        and "all are taken in colour" in caplog.text
    )


def _see_through(alpha):
    return np.concatenate([COLOUR[0], np.full((7, 9, 1), alpha, np.uint8)], 2)


def test_what_is_see_through_nowhere_is_taken(tmp_path):
    assert np.array_equal(data.load(write(tmp_path, [_see_through(255)]))["x"][0], COLOUR[0].transpose(2, 0, 1))


REFUSED = {
    "sizes": ([GREY[0], GREY[1, :6]], "0.png has 9 x 7 pixels and 1.png has 9 x 6 .*; make all pictures of one size"),
    "see-through": ([_see_through(100)], "0.png is see-through in some pixels"),
    "16 bits": ([GREY[0].astype(np.uint16) * 100], "0.png has more than 8 bits a pixel"),
    "none": ([], "is a folder without pictures"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence(case, tmp_path):
    pictures, message = REFUSED[case]
    with pytest.raises(PpgenError, match=message) as caught:
        data.load(write(tmp_path / "p", pictures))
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named(tmp_path):
    write(tmp_path, GREY[:2])
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(PpgenError, match="1.png cannot be read as a picture"):
        data.load(tmp_path)


def test_pictures_beside_folders_are_refused(tmp_path):
    write(tmp_path / "cat", GREY[:1])
    write(tmp_path, GREY[1:2])
    with pytest.raises(PpgenError, match="pictures beside folders of pictures .cat.; put all"):
        data.load(tmp_path)


def test_folders_that_are_no_labels_are_refused(tmp_path):
    (tmp_path / "splits").mkdir()
    for name in ("train", "test"):
        write(tmp_path / "splits" / name, GREY[:1])
    with pytest.raises(PpgenError, match="called test, train, as splits of the data are, and no labels"):
        data.load(tmp_path / "splits")
    (tmp_path / "deep" / "train").mkdir(parents=True)
    write(tmp_path / "deep" / "train" / "cat", GREY[:1])
    with pytest.raises(PpgenError, match=f"give {tmp_path / 'deep' / 'train'}, which has them"):
        data.load(tmp_path / "deep")


def test_pictures_that_are_not_read_are_said_and_others_are_upright(tmp_path, caplog):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    Image.fromarray(GREY[0]).save(tmp_path / "a.png", exif=turned)
    Image.fromarray(GREY[1]).save(tmp_path / "b.tif")
    assert np.array_equal(data.load(tmp_path)["x"][0], np.rot90(GREY[0], -1))
    assert "1 pictures of other kinds (b.tif) are left out" in caplog.text


@pytest.mark.parametrize("name", ["ddpm", "flow_matching", "image_flow"])
def test_models_of_images_have_channels_first_whatever_the_array_has(name):
    from ppgen import catalog

    cls = catalog.find(name).target
    first = torch.randint(0, 256, (8, 3, 6, 8), dtype=torch.uint8)
    made = [cls.from_data({"x": x}) for x in (first, first.permute(0, 2, 3, 1))]
    assert made[0] == made[1] and [3, 6, 8] in [list(v) for v in made[0].values() if isinstance(v, list | tuple)]


def test_channels_last_are_turned_where_a_program_has_them_first(caplog):
    x = torch.as_tensor(COLOUR)
    with caplog.at_level(logging.INFO, "ppgen"):
        found = data.in_shapes(data.Table({"x": x}), {"x": (3, 7, 9)})["x"]
    assert torch.equal(found, x.permute(0, 3, 1, 2)) and "has its channels last" in caplog.text
    for kept in (torch.zeros(2, 3, 7, 9), torch.zeros(2, 3, 9, 3), torch.zeros(2, 4, 4, 3), torch.zeros(2, 9, 3)):
        assert channels_first("x", kept) is kept
    own = torch.rand(2, 7, 9, 3)  # a program that says that its channels are last
    assert torch.equal(data.in_shapes(data.Table({"x": own}), {"x": (7, 9, 3)})["x"], own)


SCALES = {
    "bytes": (torch.as_tensor(GREY), "images of 9 x 7 pixels; bytes"),
    "0 to 1": (torch.rand(2, 3, 7, 9), "images of 9 x 7 pixels, 3 channels, first; values in [0, 1]"),
    "-1 to 1": (2 * torch.rand(2, 7, 9, 3) - 1, "images of 9 x 7 pixels, 3 channels, last; values in [-1, 1]"),
    "0 to 255": (255 * torch.rand(2, 1, 7, 9), "values in [0, 255], which are to be divided by 255"),
    "a matrix": (torch.rand(20, 9), ""),
    "a sequence": (torch.randn(20, 9, 9), ""),
}


@pytest.mark.parametrize("case", SCALES)
def test_the_scale_of_pixels_is_said(case):
    x, said = SCALES[case]
    assert said in describe_images(x) and bool(said) == bool(describe_images(x))


def test_check_shows_a_folder(tmp_path):
    done = CliRunner().invoke(cli.app, ["check", "--data", str(write(tmp_path / "p", COLOUR))])
    assert done.exit_code == 0 and "uint8" in done.output and "(6, 3, 7, 9)" in done.output, done.output
