"""How pasted people meet the room: each look against a slow reference, one pixel at a time in Python's integers."""

import math

import numpy as np
import pytest

from dsgen.corpus import looks
from dsgen.corpus.looks import Contact, Ellipse


def slow_div255(x):
    """Divide by 255 and round to the nearest, as looks.py defines it."""
    return (x + 128 + (x + 128) // 256) // 256


def some_person(rng, height, width):
    """Colour and alpha of all kinds: opaque and empty regions, and any value between."""
    alpha = rng.choice([0, 255, 255, rng.integers(256)], (height, width)).astype(np.uint8)
    alpha = np.where(rng.random((height, width)) < 0.3, rng.integers(0, 256, (height, width)), alpha).astype(np.uint8)
    colour = (rng.integers(0, 256, (height, width, 3)) * alpha[..., None] + 127) // 255
    return colour.astype(np.uint8), alpha


def standing_person(height=40, width=24):
    """An opaque ellipse of one colour with a soft edge, in a window with a margin around it."""
    y, x = np.mgrid[:height, :width] + 0.5
    radius = np.hypot((y - height / 2) / (height / 2 - 4), (x - width / 2) / (width / 2 - 4))
    alpha = np.clip((1.05 - radius) * 2000, 0, 255).astype(np.uint8)
    return (np.array([200, 120, 60]) * alpha[..., None] // 255).astype(np.uint8), alpha


def test_div255_rounds_every_product_to_the_nearest():
    """Which no tie can upset, since 255 is odd."""
    x = np.arange(65026, dtype=np.uint16)
    assert (looks._div255(x.copy()) == (2 * x.astype(int) + 255) // 510).all()
    assert [slow_div255(int(v)) for v in x[::97]] == looks._div255(x[::97].copy()).tolist()


def test_a_person_is_drawn_over_a_background():
    """Alpha 0 leaves the background and 255 shows the person, to the bit; between them, as defined."""
    rng = np.random.default_rng(0)
    colour, alpha = some_person(rng, 9, 7)
    background = rng.integers(0, 256, (9, 7, 3), np.uint8)
    drawn = looks.premultiplied_over(background, colour, alpha)
    for at in np.ndindex(9, 7, 3):
        behind = slow_div255(int(background[at]) * (255 - int(alpha[at[:2]])))
        assert drawn[at] == behind + int(colour[at])
    assert (drawn[alpha == 0] == background[alpha == 0]).all()
    assert (drawn[alpha == 255] == colour[alpha == 255]).all()


def slow_shadow(window, on_floor, ellipse, strength):
    """The contact shadow, one pixel at a time."""
    centre_y64, centre_x64, radius_y64, radius_x64 = ellipse
    out = window.copy()
    for y, x in np.ndindex(on_floor.shape):
        r = 4096 * (64 * y + 32 - centre_y64) ** 2 // radius_y64**2
        r += 4096 * (64 * x + 32 - centre_x64) ** 2 // radius_x64**2
        p = (5 * max(0, 4096 - r) ** 2 + 3 * max(0, 4096 - 4 * r) ** 2) // 2048
        s = slow_div255(int(on_floor[y, x]) * ((strength * p + 32768) // 65536))
        out[y, x] = [slow_div255(int(value) * (255 - s)) for value in window[y, x]]
    return out


def some_ellipse(rng):
    """A centre in or beside a window of 14 x 20 pixels, and radii from a tenth of a pixel to more than the window."""
    return Ellipse(
        centre_y64=int(rng.integers(-300, 1200)),
        centre_x64=int(rng.integers(-300, 1600)),
        radius_y64=int(rng.integers(6, 900)),
        radius_x64=int(rng.integers(6, 1500)),
    )


@pytest.mark.parametrize("seed", range(6))
def test_contact_shadow_equals_a_slow_loop(seed):
    """To the bit, for centres and radii of any fraction of a pixel, and a floor that ends within pixels."""
    rng = np.random.default_rng(seed)
    window = rng.integers(0, 256, (14, 20, 3), np.uint8)
    on_floor = rng.choice(np.array([0, 255, 255, rng.integers(256)], np.uint8), (14, 20))
    ellipse, strength = some_ellipse(rng), int(rng.integers(256))
    expected = slow_shadow(window, on_floor, ellipse, strength)
    assert (looks.contact_shadow(window, on_floor, ellipse, strength) == expected).all()


def test_contact_shadow_darkens_the_floor_alone():
    """Nothing gets brighter, what is no floor stays, strength 0 changes nothing, and 255 is black at the centre."""
    rng = np.random.default_rng(7)
    window = rng.integers(0, 256, (15, 21, 3), np.uint8)
    on_floor = rng.choice(np.array([0, 255], np.uint8), (15, 21))
    on_floor[7, 10] = 255
    ellipse = Ellipse(centre_y64=7 * 64 + 32, centre_x64=10 * 64 + 32, radius_y64=300, radius_x64=500)
    shaded = looks.contact_shadow(window, on_floor, ellipse, 255)
    assert (shaded <= window).all()
    assert (shaded != window).any()
    assert (shaded[on_floor == 0] == window[on_floor == 0]).all()
    assert (shaded[7, 10] == 0).all()
    assert (looks.contact_shadow(window, on_floor, ellipse, 0) == window).all()


@pytest.mark.parametrize("seed", range(6))
def test_contact_shadow_stays_in_its_extent(seed):
    """Every pixel it changes is in the box; a window that is cut to the box gets the same shadow."""
    rng = np.random.default_rng(seed)
    window, on_floor = np.full((14, 20, 3), 255, np.uint8), np.full((14, 20), 255, np.uint8)
    ellipse = some_ellipse(rng)
    shaded = looks.contact_shadow(window, on_floor, ellipse, 255)
    top, left, bottom, right = ellipse.extent()
    outside = np.ones((14, 20), bool)
    outside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = False
    assert (shaded[outside] == 255).all()
    top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, 14), min(right, 20)
    if bottom > top and right > left:
        box = np.s_[top:bottom, left:right]
        assert (
            looks.contact_shadow(window[box], on_floor[box], ellipse.seen_from(top, left), 255) == shaded[box]
        ).all()


def test_extent_is_the_pixels_whose_centres_lie_in_the_ellipse():
    """By trying every row, for centres and radii around the centres of pixels."""
    for centre in range(-70, 71):
        for radius in (1, 31, 32, 33, 63, 64, 65, 200):
            rows = [y for y in range(-10, 11) if abs(64 * y + 32 - centre) < radius]
            top, left, bottom, right = Ellipse(centre, centre, radius, radius).extent()
            assert list(range(top, bottom)) == list(range(left, right)) == rows


def test_contact_shadow_is_symmetric_and_darkest_at_the_centre():
    """A mirrored window has the mirrored shadow, and it never gets darker outwards."""
    white, floor = np.full((21, 31, 3), 255, np.uint8), np.full((21, 31), 255, np.uint8)
    shaded = looks.contact_shadow(white, floor, Ellipse(672, 992, 500, 900), 200)
    assert (shaded == shaded[::-1]).all()
    assert (shaded == shaded[:, ::-1]).all()
    assert (np.diff(shaded[10, 15:, 0].astype(int)) >= 0).all()
    assert (np.diff(shaded[10:, 15, 0].astype(int)) >= 0).all()
    assert shaded.min() == shaded[10, 15, 0] == 55


def slow_contacts(alpha):
    """Where a cut-out stands, column by column."""
    height, width = alpha.shape
    bottoms = {}
    for x in range(width):
        rows = [y + 1 for y in range(height) if alpha[y, x] >= 128]
        if rows:
            bottoms[x] = rows[-1]
    contacts = []
    for x, bottom in bottoms.items():
        if bottom < max(bottoms.values()) - 12 * height // 100:
            continue
        if contacts and x - contacts[-1].right <= 6 * height // 100:
            contacts[-1] = Contact(contacts[-1].left, x + 1, max(contacts[-1].bottom, bottom))
        else:
            contacts.append(Contact(x, x + 1, bottom))
    return tuple(contacts)


@pytest.mark.parametrize("seed", range(20))
def test_contacts_equal_a_slow_loop(seed):
    """Of blocks of all heights side by side, at any size, with empty columns between them."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 90)), int(rng.integers(1, 60))
    bottoms = np.repeat(height - rng.integers(0, height // 5 + 1, width), rng.integers(1, 4, width))[:width]
    alpha = np.where(np.arange(height)[:, None] < bottoms, 255, 0) * (rng.random(width) < 0.8)
    assert looks.ground_contacts(alpha.astype(np.uint8)) == slow_contacts(alpha)


def test_contacts_are_the_feet():
    """Two feet apart are two contacts, close ones are one; a hand above the floor is none, nor is nothing."""
    alpha = np.zeros((100, 60), np.uint8)
    alpha[:70, 10:50] = 255  # the body
    alpha[70:98, 12:20] = alpha[70:100, 40:46] = 255  # the legs
    alpha[:60, 50:58] = 255  # an arm
    assert looks.ground_contacts(alpha) == (Contact(12, 20, 98), Contact(40, 46, 100))
    alpha[70:98, 24:36] = 255
    assert looks.ground_contacts(alpha) == (Contact(12, 46, 100),)
    assert looks.ground_contacts(np.zeros_like(alpha)) == ()


def test_contact_s_ellipse_lies_under_the_feet():
    """By its definition, for a cut-out drawn at half of its size; as flat as the camera is low."""
    contact, place = Contact(10, 30, 90), {"top64": 640, "left64": -100, "height64": 50 * 64}
    ellipse = contact.ellipse(100, **place, flatness1024=512)
    assert ellipse.centre_x64 == -100 + 20 * 32
    assert ellipse.radius_x64 == 6 * 64 + 50 * 64 // 7
    assert ellipse.radius_y64 == ellipse.radius_x64 // 2
    assert ellipse.centre_y64 == 640 + 45 * 64 - ellipse.radius_y64 // 4
    assert contact.ellipse(100, **place, flatness1024=0).radius_y64 == 1
    assert contact.ellipse(100, 0, 0, 1, 512)[2:] == (1, 1)


def slow_feather(colour, alpha, radius):
    """Feathering, one pixel at a time."""
    height, width = alpha.shape
    n = (2 * radius + 1) ** 2
    out_colour, out_alpha = np.zeros_like(colour), np.zeros_like(alpha)
    for y, x in np.ndindex(height, width):
        total = 0
        for v in range(max(0, y - radius), min(height, y + radius + 1)):
            for u in range(max(0, x - radius), min(width, x + radius + 1)):
                total += int(alpha[v, u])
        g = (max(0, 2 * total - 255 * n) + n // 2) // n
        out_colour[y, x] = [slow_div255(int(value) * g) for value in colour[y, x]]
        out_alpha[y, x] = slow_div255(int(alpha[y, x]) * g)
    return out_colour, out_alpha


@pytest.mark.parametrize("radius", looks.FEATHER_RADII)
@pytest.mark.parametrize("shape", [(13, 9), (2, 17), (1, 1)])
def test_feather_equals_a_slow_loop(radius, shape):
    """To the bit, also in windows smaller than the square that is averaged over."""
    rng = np.random.default_rng(radius)
    colour, alpha = some_person(rng, *shape)
    alpha[rng.random(shape) < 0.5] = 255
    expected = slow_feather(colour, alpha, radius)
    softened = looks.feather(colour, alpha, radius)
    assert [array.dtype for array in softened] == [np.uint8, np.uint8]
    assert all((a == b).all() for a, b in zip(softened, expected, strict=True))


@pytest.mark.parametrize("radius", looks.FEATHER_RADII)
def test_feather_softens_inwards(radius):
    """Nothing grows, what is deep inside stays, colour stays below alpha, and an edge becomes a ramp of equal steps."""
    colour, alpha = standing_person()
    soft_colour, soft_alpha = looks.feather(colour, alpha, radius)
    assert (soft_alpha <= alpha).all()
    assert (soft_colour <= soft_alpha[..., None]).all()
    assert (soft_alpha[20, 12], *soft_colour[20, 12]) == (255, 200, 120, 60)
    half_plane = np.zeros((20, 20), np.uint8)
    half_plane[:, 10:] = 255
    ramp = looks.feather(np.zeros((20, 20, 3), np.uint8), half_plane, radius)[1][10, 10 : 11 + radius]
    steps = 2 * radius + 1
    assert ramp.tolist() == [
        (510 * (i * steps + steps * (radius + 1)) - 255 * steps**2 + steps**2 // 2) // steps**2
        for i in range(radius + 1)
    ]


def slow_gaussian(colour, alpha):
    """The blend with a blurred outline, one pixel at a time."""
    height, width = alpha.shape
    kernel = (1, 2, 1)

    def blurred(plane, y, x):
        total = 8
        for i, j in np.ndindex(3, 3):
            v, u = y + i - 1, x + j - 1
            if 0 <= v < height and 0 <= u < width:
                total += kernel[i] * kernel[j] * int(plane[v, u])
        return total // 16

    out_colour = np.zeros((height + 2, width + 2, 3), np.uint8)
    out_alpha = np.zeros((height + 2, width + 2), np.uint8)
    for y, x in np.ndindex(height + 2, width + 2):
        v, u = y - 1, x - 1
        inside = 0 <= v < height and 0 <= u < width
        a = int(alpha[v, u]) if inside else 0
        out_alpha[y, x] = soft = blurred(alpha, v, u)
        for channel in range(3):
            c = int(colour[v, u, channel]) if inside else 0
            out_colour[y, x, channel] = slow_div255(c * soft + (255 - a) * blurred(colour[..., channel], v, u))
    return out_colour, out_alpha


@pytest.mark.parametrize("shape", [(11, 8), (1, 1), (3, 16)])
def test_gaussian_blend_equals_a_slow_loop(shape):
    """To the bit, also in windows smaller than the kernel."""
    colour, alpha = some_person(np.random.default_rng(3), *shape)
    alpha[0, 0], colour[0, 0] = 255, 255
    blended = looks.gaussian_blend(colour, alpha)
    assert [array.dtype for array in blended] == [np.uint8, np.uint8]
    assert all((a == b).all() for a, b in zip(blended, slow_gaussian(colour, alpha), strict=True))


def test_gaussian_blend_blurs_the_outline_alone():
    """A pattern stays sharp inside, the seam has the person's colours, and colour stays below alpha."""
    rng = np.random.default_rng(4)
    alpha = np.zeros((30, 20), np.uint8)
    alpha[5:25, 5:15] = 255
    colour = rng.integers(0, 256, (30, 20, 3), np.uint8) & alpha[..., None]
    soft_colour, soft_alpha = looks.gaussian_blend(colour, alpha)
    assert (soft_colour <= soft_alpha[..., None]).all()
    assert (soft_colour[8:24, 8:14] == colour[7:23, 7:13]).all()
    assert 0 < soft_alpha[15, 5] < 128 < soft_alpha[15, 6] < 255 == soft_alpha[15, 7]
    one = np.where(alpha[..., None], np.array([200, 120, 60], np.uint8), np.uint8(0))
    soft_colour, soft_alpha = looks.gaussian_blend(one, alpha)
    straight = soft_colour[soft_alpha > 50] * 255.0 / soft_alpha[soft_alpha > 50][:, None]
    assert np.abs(straight - [200, 120, 60]).max() < 5


def test_gaussian_blend_keeps_colour_below_alpha_on_any_input():
    """Whatever lies between opaque and transparent pixels."""
    for seed in range(5):
        soft_colour, soft_alpha = looks.gaussian_blend(*some_person(np.random.default_rng(seed), 16, 16))
        assert (soft_colour <= soft_alpha[..., None]).all()


def slow_poisson(background, colour, alpha, sweeps=9):
    """The blend of differences, one pixel at a time; floats of Python are those of IEEE 754."""
    height, width = alpha.shape
    region = [(int(y), int(x)) for y, x in np.argwhere(alpha >= 128)]
    out = background.copy()
    for channel in range(3):
        g = {p: (255 * int(colour[p][channel]) + int(alpha[p]) // 2) // int(alpha[p]) for p in region}
        u = dict.fromkeys(region, 0.0)
        for _ in range(sweeps):
            for p in sorted(region, key=lambda p: (p[0] + p[1]) % 2):
                y, x = p
                around = [(y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)]
                present = [q for q in around if 0 <= q[0] < height and 0 <= q[1] < width]
                d = sum(int(background[q][channel]) - g[p] for q in present if q not in u)
                right, left, below, above = (u.get(q, 0.0) for q in around)
                total = (((right + left) + below) + above) + d
                u[p] = -0.25 * u[p] + total * (1.25 / (len(present) + 1))
        for p in region:
            f = min(255, max(0, math.floor((g[p] + u[p]) + 0.5)))
            out[p][channel] = slow_div255(int(background[p][channel]) * (255 - int(alpha[p])) + f * int(alpha[p]))
    return out


@pytest.mark.parametrize("shape", [(12, 9), (7, 10), (1, 1), (1, 6), (8, 1)])
def test_poisson_blend_equals_a_slow_loop(shape):
    """To the bit, in windows of odd and even sides, with regions that touch the border."""
    rng = np.random.default_rng(5)
    background = rng.integers(0, 256, (*shape, 3), np.uint8)
    for _ in range(3):
        colour, alpha = some_person(rng, *shape)
        blended = looks.poisson_blend(background, colour, alpha)
        assert blended.dtype == np.uint8
        assert (blended == slow_poisson(background, colour, alpha)).all()


def test_poisson_blend_is_solved():
    """Ten times as many sweeps change no pixel by more than one level."""
    rng = np.random.default_rng(6)
    background = rng.integers(0, 256, (40, 24, 3), np.uint8)
    colour, alpha = standing_person()
    difference = looks.poisson_blend(background, colour, alpha).astype(int) - slow_poisson(
        background, colour, alpha, 60
    )
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def test_poisson_blend_meets_the_background_at_the_seam():
    """A third of the step at the seam goes, none of the person's middle and nothing outside the region."""
    _, alpha = standing_person()
    alpha = np.where(alpha >= 128, 255, 0).astype(np.uint8)
    colour = np.where(alpha[..., None], np.array([200, 120, 60], np.uint8), np.uint8(0))
    background = np.full((40, 24, 3), 90, np.uint8)
    blended = looks.poisson_blend(background, colour, alpha).astype(int)
    assert (blended[alpha == 0] == 90).all()
    edge = int(np.argmax(alpha[20]))
    step = np.abs(blended[20, edge] - 90) / np.abs(np.array([200, 120, 60]) - 90)
    assert (step < 0.67).all()
    assert np.abs(blended[20, 12] - [200, 120, 60]).max() <= 4


def test_poisson_blend_of_a_person_of_the_background_s_colour_changes_nothing():
    """There is no difference at the seam to even out."""
    _, alpha = standing_person()
    alpha = np.where(alpha >= 128, 255, 0).astype(np.uint8)
    background = np.full((40, 24, 3), 90, np.uint8)
    assert (looks.poisson_blend(background, background & alpha[..., None], alpha) == background).all()


def test_poisson_blend_is_the_least_of_its_functional():
    """Two levels more or less of any pixel are worse by the sum of squares that defines the blend, but for rounding."""
    rng = np.random.default_rng(8)
    alpha = np.where(rng.random((9, 8)) < 0.7, 255, 0).astype(np.uint8)
    colour = rng.integers(90, 160, (9, 8, 3), np.uint8) & alpha[..., None]
    background = rng.integers(90, 160, (9, 8, 3), np.uint8)
    blended = looks.poisson_blend(background, colour, alpha).astype(float)
    inside = alpha == 255

    def cost(f):
        total = ((f - colour)[inside] ** 2).sum()
        for axis in (0, 1):
            first, second = (np.take(inside, range(a, b), axis) for a, b in ((0, -1 + 9 - axis), (1, 9 - axis)))
            step = np.diff(f, axis=axis)
            wanted = np.where((first & second)[..., None], np.diff(colour.astype(float), axis=axis), 0)
            total += ((step - wanted)[first | second] ** 2).sum()
        return total

    best = cost(blended)
    for y, x in np.argwhere(inside):
        for change in (-2, 2):
            other = blended.copy()
            other[y, x, 1] += change
            assert cost(other) > best
