"""Training a depth network on RGB-D frames."""

import csv
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.corpora import draw_background, draw_cutout
from support.single_precision import SinglePrecision

from dsgen.depth import fit
from dsgen.depth.augment import Variety, batches, draw_pair, paste_person, read_styles, restyle, turn_camera
from dsgen.depth.fit import depth_loss, score, train_depth
from dsgen.depth.frames import Frame, Frames, Mixture, Person, parse_shares, read_people
from dsgen.depth.weights import load_depth_model
from dsgen.errors import DsgenError, InvalidValueError


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames of twenty rooms, 64 pixels: brighter means farther, 1 to 5 m."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "rgb").mkdir()
    (folder / "depth").mkdir()
    with (folder / "frames.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "room"])
        for n in range(40):
            grey = np.full((64, 64), 0, np.float32) + np.linspace(0, 200, 64)[None] * (0.5 + (n % 7) / 14) + 20
            rgb = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
            cv2.imwrite(str(folder / "rgb" / f"f{n}.png"), rgb)
            cv2.imwrite(str(folder / "depth" / f"f{n}.png"), (1000 + grey * 18).astype(np.uint16))
            writer.writerow([f"f{n}", n // 2])
    return folder


def test_rooms_are_held_out_whole(frames: Path):
    """No room is on both sides, both sides have some, and the sides do not depend on order."""
    opened = Frames(frames)
    training, held_out = opened.split(0.3)
    assert not set(opened.room[training]) & set(opened.room[held_out])
    assert len(training)
    assert len(held_out)
    assert len(training) + len(held_out) == 40


def test_training_writes_weights_that_label(frames: Path, tmp_path: Path):
    """A short run ends with a file `dsgen depth` takes, and running it again gives the same numbers."""
    options = {"encoder": "mobilenetv4_conv_small_050", "width": 32, "sizes": (64,), "epochs": (2,), "batch_size": 4}
    first = train_depth(frames, tmp_path / "a.safetensors", **options).scores
    again = train_depth([frames], tmp_path / "b.safetensors", **options).scores
    assert first == again
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    model = load_depth_model(tmp_path / "a.safetensors")
    expected = {"input_size": 64, "output": "log", "focal_px": 192.0, "full_size": True}
    assert model.network.config.items() >= expected.items()
    opened = Frames(frames)
    assert score(model.network, opened, opened.split()[1]) == pytest.approx(first)
    assert not list(tmp_path.glob("*.partial"))


def test_frames_set_aside_choose_the_epoch(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The weights of the best epoch stay, also when the run was killed after it."""
    options = {"encoder": "mobilenetv4_conv_small_050", "width": 32, "sizes": (32,), "batch_size": 8}
    given = iter([0.5, 0.8, 0.7, 0.6, 0.8])
    monkeypatch.setattr(fit, "score", lambda *_: {"delta1_median_scaled": next(given)})
    written = []
    save = fit.save_depth_network
    monkeypatch.setattr(fit, "save_depth_network", lambda network, out: (written.append(out), save(network, out)))
    fit.train_depth(frames, tmp_path / "w.safetensors", **options, epochs=(3,), validation_folder=frames)
    assert len(written) == 2  # 0.5, then 0.8, but not 0.7


def test_killed_and_run_again_ends_with_the_same_weights(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped in the second epoch; goes on with the second; other settings are refused meanwhile."""
    options = {"encoder": "mobilenetv4_conv_small_050", "width": 32, "sizes": (32, 64), "epochs": (2, 1)}
    train_depth(frames, tmp_path / "whole.safetensors", **options, batch_size=4)
    make = fit.batches

    def dies(*call: object) -> object:
        if call[-1] == 1:
            raise KeyboardInterrupt
        return make(*call)

    monkeypatch.setattr(fit, "batches", dies)
    with pytest.raises(KeyboardInterrupt):
        train_depth(frames, tmp_path / "cut.safetensors", **options, batch_size=4)
    monkeypatch.setattr(fit, "batches", make)
    with pytest.raises(DsgenError, match=r"left by another run; .*\n  batch_size 8 \(the checkpoint has 4\)$"):
        train_depth(frames, tmp_path / "cut.safetensors", **options, batch_size=8)
    train_depth(frames, tmp_path / "cut.safetensors", **options, batch_size=4)
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


def test_a_damaged_checkpoint_is_named(frames: Path, tmp_path: Path):
    """It is not taken for the end of a run."""
    (tmp_path / "w.safetensors.checkpoint").write_bytes(b"half")
    with pytest.raises(DsgenError, match="damaged checkpoint"):
        train_depth(frames, tmp_path / "w.safetensors", sizes=(64,), epochs=(1,))


def test_the_loss_falls_on_one_batch():
    """Thirty steps on four pictures more than halve the loss; a perfect answer costs nothing."""
    torch.manual_seed(0)
    from dsgen.depth.networks import DenseDepth

    network = DenseDepth("mobilenetv4_conv_small_050", 32, norm=True, output="log")
    image = torch.rand(4, 3, 64, 64)
    depth_m = (1 + 4 * image[:, :1].mean(dim=2, keepdim=True)).expand(4, 1, 64, 64).contiguous()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = depth_loss(network(image), depth_m)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    perfect = torch.nn.functional.avg_pool2d(depth_m, 2).log()
    assert depth_loss(perfect, depth_m).item() == pytest.approx(0, abs=1e-6)
    assert depth_loss(depth_m.log(), depth_m).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_does_not_see_invalid_depth():
    """Where the truth is 0 any answer costs the same."""
    depth_m = torch.full((1, 1, 32, 32), 3.0)
    depth_m[..., :16] = 0
    raw = torch.full((1, 1, 16, 16), 3.0).log()
    wild = raw.clone()
    wild[..., :8] = 50
    assert depth_loss(raw, depth_m).item() == pytest.approx(depth_loss(wild, depth_m).item())


def frame_of(depth_m: float | np.ndarray, size: tuple[int, int] = (64, 64), fov_deg: float = 61.0) -> Frame:
    """Return a frame of a picture of ours at a depth."""
    depth_mm = np.round(np.broadcast_to(np.asarray(depth_m) * 1000, size)).astype(np.uint16)
    return Frame(draw_background(0, *size), depth_mm, size[1] / 2 / np.tan(np.radians(fov_deg / 2)))


def test_varying_keeps_picture_and_depth_together():
    """Shapes, types, validity; a seed decides; depth is that of the canonical camera, in frames of any proportions."""
    variety = Variety([Person(draw_cutout(0), 1.7)], [draw_background(3, 40, 60)])
    for seed in range(40):
        frame = frame_of(4.0, ((64, 64), (48, 80), (90, 60))[seed % 3])
        shape = ((48, 48), (32, 64), (64, 32))[seed // 3 % 3]
        picture, depth = draw_pair(frame, shape, 41.0, variety, np.random.default_rng(seed))
        again = draw_pair(frame, shape, 41.0, variety, np.random.default_rng(seed))
        assert (picture == again[0]).all()
        assert (depth == again[1]).all()
        assert picture.shape == (*shape, 3)
        assert (picture.dtype, depth.dtype) == (np.uint8, np.float32)
        assert depth.shape == shape
        assert (depth > 0).mean() > 0.4  # a turned camera sees beyond the frame
        assert 0.1 < depth[depth > 0].min() <= depth.max() <= 7


def test_the_same_picture_has_the_same_canonical_depth_whoever_took_it():
    """Two cameras, one with twice the focal length and twice the distance, take the same picture of a wall."""
    near, far = frame_of(2.0, fov_deg=60), frame_of(4.0, fov_deg=2 * np.degrees(np.arctan(np.tan(np.radians(30)) / 2)))
    assert far.focal_px == pytest.approx(2 * near.focal_px)
    one, other = (turn_camera(f, camera_of(f.focal_px), (64, 64), np.zeros(3), 55.0) for f in (near, far))
    assert (one[0] == other[0]).all()
    assert one[1] == pytest.approx(other[1])
    assert one[1] == pytest.approx(2.0 * 55.0 / near.focal_px)


def camera_of(focal_px: float, side: int = 64) -> np.ndarray:
    """Return the matrix of a camera of square pictures."""
    return np.array([[focal_px, 0, side / 2 - 0.5], [0, focal_px, side / 2 - 0.5], [0, 0, 1]])


def test_a_turned_camera_sees_the_same_points_elsewhere():
    """Points in space, turned and projected one by one, are found at their pixel with their colour and planar depth."""
    high, wide, crop, fov_deg, focal_px = 180, 200, 160, 64.0, 100.0
    focal = wide / 2 / np.tan(np.radians(fov_deg / 2))
    y, x = np.mgrid[:high, :wide].astype(np.float32)
    depth_m = 2 + 0.004 * x + 0.003 * y
    rgb = np.stack([x, y, x / 2 + y / 2], axis=2).round().astype(np.uint8)
    frame = Frame(rgb, np.round(depth_m * 1000).astype(np.uint16), focal)
    seen, seen_m = turn_camera(frame, camera_of(focal, crop), (crop, crop), np.array([9.0, -7.0, 4.0]), focal_px)
    pitch, yaw, roll = np.radians([9.0, -7.0, 4.0])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    found = 0
    for row, column in np.random.default_rng(0).integers(0, high, (400, 2)):
        z = float(depth_m[row, column])
        point = np.array([(column - wide / 2 + 0.5) * z / focal, (row - high / 2 + 0.5) * z / focal, z])
        there = (about_z @ about_x @ about_y).T @ point
        u, v = there[:2] / there[2] * focal + crop / 2 - 0.5
        if 1 <= u < crop - 1 and 1 <= v < crop - 1:
            found += 1
            pixel = round(v), round(u)
            assert abs(seen_m[pixel] * focal / focal_px - there[2]) < 0.01
            assert np.abs(seen[pixel].astype(int) - rgb[row, column]).max() <= 2
    assert found > 100
    invalid = seen_m == 0
    assert 0.01 < invalid.mean() < 0.4
    assert seen_m[~invalid].min() * focal / focal_px > 1


def test_a_large_frame_is_averaged_and_stays_in_place():
    """Fine stripes become grey instead of aliasing; an edge between two halves stays where it was."""
    rgb = np.zeros((320, 320, 3), np.uint8)
    rgb[:, ::2] = 200
    depth_mm = np.full((320, 320), 1000, np.uint16)
    depth_mm[:, 160:] = 3000
    rgb[:, 160:] //= 4
    seen, seen_m = turn_camera(Frame(rgb, depth_mm, 300.0), camera_of(60.0), (64, 64), np.zeros(3), 60.0)
    assert np.abs(seen[:, 2:30].astype(int) - 100).max() < 12
    assert np.abs(seen[:, 34:62].astype(int) - 25).max() < 5
    assert seen_m[:, :32] == pytest.approx(1)
    assert seen_m[:, 32:] == pytest.approx(3)


def test_styles_change_colours_and_not_shapes(tmp_path: Path):
    """The means move to those of the photograph, the picture stays correlated with itself."""
    rgb, style = draw_background(0, 64, 64), np.full((30, 40, 3), (200, 30, 60), np.uint8)
    for seed in range(10):
        styled = restyle(rgb, style, np.random.default_rng(seed))
        assert styled.shape == rgb.shape
        before, after = (each.mean((0, 1)) - (200, 30, 60) for each in (rgb.astype(float), styled.astype(float)))
        assert np.abs(after).sum() < np.abs(before).sum()
        assert np.corrcoef(rgb[..., 1].ravel(), styled[..., 1].ravel())[0, 1] > 0.6
    with pytest.raises(DsgenError, match=r"--styles: .*x is no folder, expected one with photographs; check the path"):
        read_styles(tmp_path / "x")
    with pytest.raises(DsgenError, match=r"--styles: .* has no pictures, expected photographs; check the path"):
        read_styles(tmp_path)
    cv2.imwrite(str(tmp_path / "wide.png"), draw_background(0, 100, 1024))
    assert [picture.shape for picture in read_styles(tmp_path)] == [(50, 512, 3)]


def test_shares_say_how_much_of_each_folder_is_drawn(tmp_path: Path):
    """By the share, whatever the numbers of frames; rooms by the root of theirs; without shares every frame once."""
    rooms = [f"r{n}" for n in range(20)]
    many = Frames(write_frames(tmp_path / "many", rooms * 4))
    few = Frames(write_frames(tmp_path / "few", ["a"] * 9 + ["b"]))
    even = Mixture([many])
    drawn = even.draw(np.random.default_rng(0))
    assert len(drawn) == len(even) == len({id(frame.rgb) for frame in drawn})
    both = Mixture([many, few], [0.5, 0.5])
    drawn = both.draw(np.random.default_rng(0))
    ids = {id(few[row].rgb) for row in range(len(few))}
    assert len(drawn) == len(both)
    assert abs(sum(id(frame.rgb) in ids for frame in drawn) - len(both) / 2) <= 1
    single = Mixture([many, Frames(write_frames(tmp_path / "single", ["a"] * 9))], [0.5, 0.5])
    assert (len(single.training[1]), len(single.held_out[1])) == (9, 0)
    for epoch in range(2):
        shapes = {image.shape[2:] for image, _ in batches(both, 64, 55.0, 4, Variety(), 0, epoch)}
        assert shapes <= {(64, 64), (64, 32), (64, 64), (32, 64), (64, 96), (96, 64)}


def test_shares_are_parsed(tmp_path: Path):
    """A folder may have a colon in its name; shares are for all folders or none."""
    odd = tmp_path / "odd:3"
    odd.mkdir()
    assert parse_shares(["a", "b"]) == ([Path("a"), Path("b")], None)
    assert parse_shares(["a:0.7", "c:/b:2"]) == ([Path("a"), Path("c:/b")], [0.7, 2.0])
    assert parse_shares([str(odd)]) == ([odd], None)
    for texts, message in (
        (["a:0.5", "b"], "b has no share, but others have, expected one for each folder, or none at all; write b:0.5"),
        (["a:0", "b:1"], "the share of a is 0, expected a number above 0"),
        (["a:nan", "b:1"], "the share of a is nan, expected a number above 0"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            parse_shares(texts)


def test_a_pasted_person_is_nearer_than_what_it_covers():
    """And what it does not cover stays."""
    rgb, depth_m = draw_background(0, 96, 96), np.full((96, 96), 2.0, np.float32)
    before = rgb.copy()
    paste_person(rgb, depth_m, Person(draw_cutout(0), 1.7), 82.0, np.random.default_rng(0))
    changed = (rgb != before).any(axis=2)
    assert changed.any()
    assert depth_m.min() <= 0.95 * 2.0
    assert (depth_m[~changed] == 2.0).mean() > 0.99


def test_folders_that_will_not_do_are_refused(tmp_path: Path, frames: Path):
    """No listing, or a frame without its picture."""
    with pytest.raises(DsgenError, match="no such file, expected columns name and room"):
        Frames(tmp_path)
    (tmp_path / "frames.csv").write_text("name,room\nghost,1\n")
    with pytest.raises(DsgenError, match=r"rgb: no such folder; a folder of frames holds rgb/NAME.jpg or .png, depth/"):
        Frames(tmp_path)
    for kind in ("rgb", "depth"):
        (tmp_path / kind).mkdir()
    with pytest.raises(
        DsgenError, match=r"2 problems(.*\n)+.*rgb/ghost: no picture of that name, listed in(.*\n)+.*depth"
    ):
        Frames(tmp_path)
    with pytest.raises(DsgenError, match="--epochs: got 1 numbers, expected 2"):
        train_depth(frames, tmp_path / "w.safetensors", sizes=(64, 96), epochs=(1,))


def write_frames(folder: Path, rooms: list[str], size: tuple[int, int] = (32, 32)) -> Path:
    """Write a frame for each room, named f0, f1, ..."""
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for n in range(len(rooms)):
        cv2.imwrite(str(folder / "rgb" / f"f{n}.png"), draw_background(n, *size))
        cv2.imwrite(str(folder / "depth" / f"f{n}.png"), np.full(size, 2000 + n, np.uint16))
    lines = ["name,room", *(f"f{n},{room}" for n, room in enumerate(rooms))]
    (folder / "frames.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_fewer_frames_than_a_batch(tmp_path: Path):
    """The numbers are named before anything is written."""
    frames = write_frames(tmp_path / "f", ["a", "b", "c"])
    with pytest.raises(
        InvalidValueError, match=r"--batch-size: got 16, expected at most 2, the frames to train on \(1 "
    ):
        train_depth(frames, tmp_path / "w.safetensors", sizes=(32,), epochs=(1,))
    for options, message in (
        ({"batch_size": 0}, "--batch-size: got 0, expected 1 or more"),
        ({"epochs": (0,)}, "--epochs: got 0, expected"),
        ({"sizes": (16,)}, "--sizes: got 16, expected 32 pixels or more each"),
        ({"init": tmp_path / "nosuch"}, "--init: .*nosuch does not exist, expected weights of .*; check the path"),
        ({"init": frames / "frames.csv"}, "--init: .* is no readable safetensors file .*; give weights that"),
        ({"people_folder": tmp_path / "nosuch"}, "--people: .*nosuch is no folder, expected .*; check the path"),
    ):
        usual = {"sizes": (32,), "epochs": (1,), "batch_size": 2, "device": "cpu"}
        with pytest.raises(DsgenError, match=message):
            train_depth(frames, tmp_path / "w.safetensors", **usual | options)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_weights_to_begin_with_are_of_the_same_network(frames: Path, tmp_path: Path, weights: Path):
    """Those of another width are refused; those of the same one are where the training starts."""
    options = {"encoder": "mobilenetv4_conv_small_050", "sizes": (64,), "epochs": (1,), "batch_size": 4}
    with pytest.raises(
        InvalidValueError, match=r"--init: .* does not fit a DenseDepth of .* 64 wide: .*; use the --encoder"
    ):
        train_depth(frames, tmp_path / "w.safetensors", init=weights, width=64, **options)
    begun = train_depth(frames, tmp_path / "b.safetensors", init=weights, width=32, **options)
    plain = train_depth(frames, tmp_path / "p.safetensors", width=32, **options)
    assert begun.scores != plain.scores


def test_an_encoder_begins_with_weights_of_its_own(frames: Path, tmp_path: Path):
    """Whatever their layout; pictures are normalised for them; a killed run needs the file only for its hash."""
    import timm

    name = "mobilenetv4_conv_small_050"
    torch.manual_seed(3)
    state = timm.create_model(name).state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "imagenet.pth")
    options = {"encoder": name, "width": 32, "sizes": (32,), "epochs": (1,), "batch_size": 8, "learning_rate": 1e-9}
    begun = tmp_path / "b.safetensors"
    train_depth(frames, begun, encoder_weights=tmp_path / "imagenet.pth", **options)
    network = load_depth_model(begun).network
    assert network.config["normalise"] == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    key = "conv_stem.weight"
    assert network.encoder.state_dict()[key] == pytest.approx(state[key], abs=1e-5)
    image = torch.rand(1, 3, 32, 32)
    seen: list[torch.Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in network.config["normalise"])
    assert seen[0] == pytest.approx((image - mean) / deviation, abs=1e-6)
    for given, message in (
        (
            {"encoder_weights": tmp_path / "no.pth"},
            "--encoder-weights: .*no.pth does not exist, expected a file of wei",
        ),
        ({"encoder_weights": begun}, "--encoder-weights: .* is a depth network of dsgen"),
        ({"encoder_weights": tmp_path / "imagenet.pth", "init": begun}, "--init .* has the weights of the encoder too"),
        ({"encoder_weights": tmp_path / "imagenet.pth", "encoder": "resnet18"}, "--encoder-weights: .* resnet18, fits"),
    ):
        with pytest.raises(DsgenError, match=message):
            train_depth(frames, tmp_path / "c.safetensors", **options | given)


def test_both_sides_of_a_split_have_rooms(tmp_path: Path):
    """However few rooms there are, if there are two; the spelling of a room does not matter."""
    for rooms in (["a", "b"], ["x", "y", "z"], [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")] + ["b"]):
        opened = Frames(write_frames(tmp_path / rooms[0], rooms))
        for share in (0.0001, 0.1, 0.9999):
            training, held_out = opened.split(share)
            assert len(training)
            assert len(held_out)
            sides = (
                {unicodedata.normalize("NFC", rooms[n]) for n in training},
                {unicodedata.normalize("NFC", rooms[n]) for n in held_out},
            )
            assert not sides[0] & sides[1]
    with pytest.raises(DsgenError, match="the frames are of one room, expected two or more: whole rooms are held out"):
        Frames(write_frames(tmp_path / "one", ["a", "a"])).split()


def test_frames_are_read_as_all_pictures_are(tmp_path: Path):
    """Grey and 16-bit pictures become RGB, any spelling of a name finds its files, a listing from Excel is read."""
    folder = write_frames(tmp_path / "f", ["a", "b", "c"])
    cv2.imwrite(str(folder / "rgb" / "f0.png"), np.full((32, 32), 257 * 90, np.uint16))
    for kind in ("rgb", "depth"):
        (folder / kind / "f1.png").rename(folder / kind / unicodedata.normalize("NFD", "é.png"))
        (folder / kind / "._f1.png").write_bytes(b"Mac OS X")
    (folder / "frames.csv").write_bytes("\ufeffname,room,fov_deg\r\nf0,a,\r\né,b,70\r\n".encode())
    opened = Frames(folder)
    assert opened.fov_deg == [61.0, 70.0]
    assert opened[1].focal_px == pytest.approx(16 / np.tan(np.radians(35)))
    assert (opened[0].rgb == 90).all()
    assert (opened[1].depth_mm == 2001).all()


def test_every_frame_that_will_not_do_is_listed(tmp_path: Path):
    """Damaged, missing, 8-bit, named twice; then sizes, and columns of the listing."""
    folder = write_frames(tmp_path / "f", ["a", "b", "c"])
    (folder / "rgb" / "f0.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "depth" / "f1.png"), np.zeros((32, 32), np.uint8))
    with pytest.raises(
        DsgenError, match=r"2 problems(.*\n)+.*f0.png: cannot be decoded(.*\n)+.*f1.png: no 16-bit grey"
    ):
        Frames(folder)
    shutil.copy(folder / "rgb" / "f2.png", folder / "rgb" / "f2.jpg")
    with pytest.raises(DsgenError, match=r"f2.png: has the same name as f2.jpg except for the ending; remove one"):
        Frames(folder)
    (folder / "rgb" / "f2.jpg").unlink()
    cv2.imwrite(str(folder / "rgb" / "f0.png"), draw_background(0, 32, 32))
    cv2.imwrite(str(folder / "depth" / "f1.png"), np.zeros((32, 40), np.uint16))
    with pytest.raises(
        DsgenError, match=r"f1.png: 40x32 pixels, but its picture has 32x32, expected the same size; sc"
    ):
        Frames(folder)
    for content, message in (
        ("name\nf0\n", "no column room, got name; a folder of frames holds rgb/"),
        ("name,room,fov_deg\nf0,a,wide\n", "fov_deg of frame f0 is wide, expected degrees above 0 and below 180"),
        ("name,room\n", "no frames listed, expected at least one row; add"),
    ):
        (folder / "frames.csv").write_text(content)
        with pytest.raises(DsgenError, match=message):
            Frames(folder)


def test_people_are_read_as_all_cutouts_are(tmp_path: Path):
    """Who is seated is said by any spelling of the name; those without alpha are listed."""
    (tmp_path / "p").mkdir()
    for name in ("Zoë", "b"):
        cv2.imwrite(str(tmp_path / "p" / f"{unicodedata.normalize('NFD', name)}.png"), draw_cutout(0))
    (tmp_path / "people.csv").write_text("name,poses\nZoë,sitting\n", encoding="utf-8")
    assert [person.height_m for person in read_people(tmp_path / "p")] == [1.3, 1.7]
    cv2.imwrite(str(tmp_path / "p" / "opaque.png"), draw_background(0))
    with pytest.raises(DsgenError, match=r"opaque.png: no alpha channel"):
        read_people(tmp_path / "p")


def test_training_depth_needs_no_double_precision(frames: Path, tmp_path: Path):
    """On a device that has none, such as MPS."""
    options = {"encoder": "mobilenetv4_conv_small_050", "width": 32, "sizes": (32,), "epochs": (1,), "batch_size": 8}
    with SinglePrecision():
        train_depth(frames, tmp_path / "w.safetensors", **options, device="cpu")
