"""Procedural textures: albedo and gloss from texture coordinates, filtered to the size of a pixel.

Unfiltered patterns shimmer far away, and a depth network takes shimmer for structure. So every texture fades to its
mean as the pixel's footprint grows.
"""

import functools

import numpy as np

from data_cache.sources.synthetic.mesh import Material

_TILE = 512
_TEXEL_M = 0.02
# Per Material: strength of its grain, size of its grain, and mirror strength.
_GRAIN = np.array([0.12, 0.35, 0.25, 0.5, 0.1, 0.25, 0.5, 0.5, 0.0, 0.0, 0.25, 0.12, 0.0], np.float32)
_GRAIN_SIZE = np.array([1, 1, 1, 2, 1, 1, 2, 0.7, 1, 1, 1, 1, 1], np.float32)
_MIRROR = np.array([0, 0.12, 0, 0, 0, 0, 0, 0, 0.9, 1.6, 0, 0, 0], np.float32)


def appearance(
    material: np.ndarray,
    colour: np.ndarray,
    style: np.ndarray,
    point_m: np.ndarray,
    uv_m: np.ndarray,
    flat: np.ndarray,
    footprint_m: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (N, 3) and mirror strength (N,) of N points.

    Args:
        material: (N,) Material.
        colour: (N, 3) mean albedo.
        style: (N, 7) numbers for the texture: of a facade a `street.Facade`; of a road the width of a lane; of stones
            their length and height (m), the width of joints (m) and the spread of their brightness; of timber the
            distances of posts and of beams (m).
        point_m: (N, 3) world coordinates.
        uv_m: (N, 2) texture coordinates.
        flat: (N,) whether the surface is level.
        footprint_m: (N,) side of the surface patch that a pixel sees.
    """
    place = np.where(flat[:, None], point_m[:, :2], uv_m)
    leafy = material == Material.FOLIAGE
    place[leafy] = point_m[leafy, :2] + np.float32(0.7) * point_m[leafy, 2:]
    size = _GRAIN_SIZE[material]
    grain = 0.6 * noise(place / size[:, None], footprint_m / size) + 0.4 * noise(place / 9, footprint_m / 9)
    albedo = colour * np.maximum(1 + _GRAIN[material] * grain, 0.15)[:, None]
    mirror = _MIRROR[material]
    road = material == Material.ROAD
    albedo[road] = _road(albedo[road], style[road, 0], uv_m[road], footprint_m[road])
    slabs = material == Material.PAVING
    albedo[slabs] = _paving(albedo[slabs], uv_m[slabs], footprint_m[slabs])
    stones = material == Material.STONES
    albedo[stones] = _stones(albedo[stones], style[stones], uv_m[stones], footprint_m[stones])
    timber = (material == Material.TIMBER) & ~flat
    albedo[timber] = _timber(albedo[timber], style[timber], uv_m[timber], footprint_m[timber])
    wall = (material == Material.FACADE) & ~flat
    albedo[wall], mirror[wall] = _facade(albedo[wall], style[wall], uv_m[wall], footprint_m[wall])
    return albedo, mirror


def noise(place_m: np.ndarray, footprint_m: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Fractal noise of standard deviation 1 at (N, 2) places, filtered to (N,) footprints; it repeats every 10 m."""
    texels, offset, side = _pyramid(smooth)
    level = np.clip(np.log2(np.maximum(footprint_m, 1e-4) / _TEXEL_M) + 0.5, 0, len(side) - 1).astype(np.int32)
    cell = np.floor(place_m * np.float32(1 / _TEXEL_M)).astype(np.int32) & (_TILE - 1)
    cell >>= level[:, None]
    found: np.ndarray = texels[offset[level] + cell[:, 1] * side[level] + cell[:, 0]]
    return found


@functools.cache
def _pyramid(smooth: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image pyramid of a tileable noise: the texels of all levels, and the offset and side of each level."""
    f = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.fftfreq(_TILE)) * _TILE
    white = np.fft.fft2(np.random.default_rng(7).standard_normal((_TILE, _TILE)))
    tile = np.fft.ifft2(white * (f > 0) / np.maximum(f, 3.0) ** (1.7 if smooth else 0.85)).real
    levels = [(tile / tile.std()).astype(np.float32)]
    while len(levels[-1]) > 1:
        half = len(levels[-1]) // 2
        levels.append(levels[-1].reshape(half, 2, half, 2).mean(axis=(1, 3)))
    side = np.array([len(level) for level in levels], dtype=np.int32)
    offset = np.concatenate([[0], np.cumsum(side[:-1] ** 2)]).astype(np.int32)
    return np.concatenate([level.ravel() for level in levels]), offset, side


def _band(x_m: np.ndarray, half_m: np.ndarray | float, footprint_m: np.ndarray) -> np.ndarray:
    """Share of the footprint centred at x that lies within |x| < half: a box filter."""
    half = footprint_m / 2
    covered = np.minimum(x_m + half, half_m) - np.maximum(x_m - half, -half_m)
    share: np.ndarray = np.clip(covered / footprint_m, 0, 1)
    return share


def _stripes(
    x_m: np.ndarray, period_m: np.ndarray | float, width_m: np.ndarray | float, footprint_m: np.ndarray
) -> np.ndarray:
    """Filtered stripes, centred on multiples of the period."""
    blur = np.clip(footprint_m / period_m * 2 - 0.5, 0, 1)
    sharp = _band(x_m - np.round(x_m / period_m) * period_m, width_m / 2, footprint_m)
    share: np.ndarray = sharp * (1 - blur) + blur * (width_m / period_m)
    return share


def _mix(below: np.ndarray, above: np.ndarray | float, cover: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = below * (1 - cover[:, None]) + above * cover[:, None]
    return mixed


def _road(albedo: np.ndarray, lane_m: np.ndarray, uv_m: np.ndarray, footprint_m: np.ndarray) -> np.ndarray:
    """Asphalt with tracks polished by tyres, a dashed middle line and edge lines, all worn."""
    along, left = uv_m.T
    track = _band(np.abs(np.abs(left) - lane_m / 2) - 0.8, 0.3, footprint_m + 0.3)
    dashes = _band(left, 0.06, footprint_m) * _stripes(along, 9.0, 3.0, footprint_m * 2)
    lines = dashes + _band(np.abs(left) - lane_m - 0.05, 0.06, footprint_m)
    worn = 0.75 + 0.25 * noise(uv_m * 2, footprint_m * 2)
    return _mix(albedo * (1 - 0.15 * track)[:, None], 0.62, np.clip(lines * worn, 0, 1))


def _paving(albedo: np.ndarray, uv_m: np.ndarray, footprint_m: np.ndarray) -> np.ndarray:
    """Slabs of 1.2 m with dark joints."""
    joint = np.maximum(*(_stripes(x, 1.2, 0.03, footprint_m) for x in uv_m.T))
    return _mix(albedo, 0.0, 0.5 * joint)


def _stones(albedo: np.ndarray, style: np.ndarray, uv_m: np.ndarray, footprint_m: np.ndarray) -> np.ndarray:
    """Stones, bricks or tiles in staggered courses, each of its own brightness; `style` as `appearance` says."""
    length, height, joint, spread = style.T[:4]
    v = uv_m[:, 1]
    course = np.floor(v / height)
    u = uv_m[:, 0] + 0.5 * length * (course % 2)
    lot = np.sin(np.floor(u / length) * 12.9898 + course * 78.233) * 437.585
    sharp = np.clip(2 - 2 * footprint_m / height, 0, 1)
    own = 1 + spread * sharp * (2 * (lot - np.floor(lot)) - 1)
    joints = np.maximum(_stripes(u, length, joint, footprint_m), _stripes(v, height, joint, footprint_m))
    return _mix(albedo * own[:, None], 0.03, 0.75 * joints)


def _timber(albedo: np.ndarray, style: np.ndarray, uv_m: np.ndarray, footprint_m: np.ndarray) -> np.ndarray:
    """Plaster between dark posts and beams, with a brace in every other field; `style` as `appearance` says."""
    post, beam = style.T[:2]
    u, v = uv_m.T
    field = np.floor(u / post) + np.floor(v / beam)
    across = np.abs((u / post) % 1 - (v / beam) % 1) * np.minimum(post, beam) * 0.7
    brace = _band(across, 0.09, footprint_m) * (field % 2)
    frame = np.maximum(_stripes(u, post, 0.2, footprint_m), _stripes(v, beam, 0.24, footprint_m))
    return _mix(albedo, np.array([0.07, 0.045, 0.03], np.float32), np.maximum(frame, brace))


def _facade(
    albedo: np.ndarray, style: np.ndarray, uv_m: np.ndarray, footprint_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Courses of brick, a ledge and framed windows with bars, some with curtains; `style` is a `street.Facade`."""
    pitch, floor, width, height, ground, seed, trim = style.T
    u, v = uv_m.T
    low = v < ground
    shop = low & (ground > 3.55)
    width, height = np.where(shop, pitch * 0.78, width), np.where(shop, ground - 1.3, height)
    period = np.where(low, ground, floor)
    up = np.where(low, v, v - ground)
    column, storey = np.floor(u / pitch), np.floor(up / period)
    x = np.abs(u - (column + 0.5) * pitch)
    y = up - storey * period - np.where(shop, 0.45, 0.8) - height / 2
    frame, pane = (_band(x, width / 2 + e, footprint_m) * _band(y, height / 2 + e, footprint_m) for e in (0.12, 0.0))
    bars = np.maximum(_band(x, 0.03, footprint_m), _band(y - height * 0.2, 0.03, footprint_m))
    pane = pane * (1 - 0.8 * bars)
    lot = np.sin(column * 12.9898 + storey * 78.233 + seed * 3.7) * 437.585
    chance = lot - np.floor(lot)
    lintel_shadow = 1 - 0.6 * _band(y - height / 2 + 0.1, 0.1, footprint_m)
    glass = (0.05 + 0.22 * (chance > 0.72) * chance) * lintel_shadow
    wall = albedo * (1 - 0.18 * _stripes(v, 0.25, 0.03, footprint_m) - 0.25 * np.exp(-1.2 * v))[:, None]
    wall = _mix(wall, trim[:, None], np.maximum(0.9 * frame, _band(v - ground + 0.15, 0.12, footprint_m)))
    return _mix(wall, glass[:, None] * np.array([0.9, 1.0, 1.1], np.float32), pane), 1.3 * pane
