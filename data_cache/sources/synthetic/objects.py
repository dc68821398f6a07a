"""What stands in a street of either world: trees, people, cars."""

import numpy as np

from data_cache.sources.synthetic.mesh import Material, Mesh, Surface, Vector

KERB_M = 0.13
_PAINTS = (0.55, 0.55, 0.55), (0.03, 0.03, 0.035), (0.25, 0.26, 0.27), (0.42, 0.43, 0.44), (0.35, 0.02, 0.02), \
    (0.03, 0.07, 0.25), (0.70, 0.70, 0.68), (0.04, 0.12, 0.07), (0.30, 0.26, 0.20)  # fmt: skip
SIGNS = (0.6, 0.03, 0.03), (0.03, 0.10, 0.5), (0.65, 0.62, 0.55), (0.6, 0.45, 0.03)


def pick(rng: np.random.Generator, colours: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """One of the colours, a little lighter or darker."""
    picked: np.ndarray = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.2)
    return picked


def tree(mesh: Mesh, rng: np.random.Generator, along: float, left: float, scale: float = 1.0) -> None:
    """Add a tree about 5 m high."""
    bark, green = Surface(Material.BARK, (0.12, 0.09, 0.065)), np.array([0.06, 0.115, 0.03]) * rng.uniform(0.7, 1.4, 3)
    radius = rng.uniform(1.4, 2.4) * scale
    top = np.array([along, left, KERB_M + rng.uniform(2.2, 3.4) * scale])
    mesh.tube((along, left, 0.0), top, (0.17 * scale, 0.12 * scale), bark)
    crown = top + np.array([0, 0, radius * 0.9])
    for _ in range(4):
        mesh.tube(top - np.array([0, 0, 0.2]), crown + rng.normal(0, 0.35, 3) * radius, (0.07 * scale, 0.03), bark, 5)
    for _ in range(9):
        offset = rng.standard_normal(3)
        offset *= radius * rng.uniform(0.3, 0.75) / np.linalg.norm(offset)
        mesh.leaves(crown + offset, radius * rng.uniform(0.35, 0.6), green, rng)


def person(mesh: Mesh, rng: np.random.Generator, along: float, left: float) -> None:
    """Add somebody on their way along the street."""
    trousers, coat = (rng.uniform(0.02, 0.25) * rng.uniform(0.7, 1.3, 3) for _ in range(2))
    skin = np.array([0.5, 0.32, 0.24]) * rng.uniform(0.4, 1.1)
    parts: list[tuple[Vector, Vector, tuple[float, float], np.ndarray]] = [
        ((0, 0, 0.8), (0, 0, 1.25), (0.17, 0.21), coat), ((0, 0, 1.25), (0, 0, 1.5), (0.21, 0.08), coat),
        ((0, 0, 1.48), (0, 0, 1.6), (0.06, 0.10), skin), ((0, 0, 1.6), (0, 0, 1.76), (0.11, 0.07), skin * 0.3),
    ]  # fmt: skip
    for swing, y in ((0.22, 0.09), (-0.2, -0.09)):
        parts.append(((swing, y, 0), (0, y, 0.85), (0.065, 0.10), trousers))
        parts.append(((-swing, 2.5 * y, 0.8), (0, 2.3 * y, 1.42), (0.045, 0.06), coat))
    facing, feet = rng.choice([-1.0, 1.0]), np.array([along, left, KERB_M])
    turned = rng.uniform(0.92, 1.08) * np.array([facing, facing, 1.0])
    for start, end, radii, colour in parts:
        mesh.tube(feet + turned * start, feet + turned * end, radii, Surface(Material.PLAIN, colour))


def car(mesh: Mesh, rng: np.random.Generator, along: float, left: float, yaw_rad: float) -> None:
    """Add a car that stands on the road."""
    left, yaw_rad = left + rng.normal(0, 0.06), yaw_rad + rng.normal(0, 0.02)
    paint, glass = Surface(Material.PAINT, pick(rng, _PAINTS)), Surface(Material.GLASS, (0.02, 0.024, 0.028))
    black, steel = Surface(Material.PLAIN, (0.015, 0.015, 0.017)), Surface(Material.PLAIN, (0.35, 0.35, 0.36))
    # Saloon, hatchback, sport utility, van: half length, belt height and roof height (m); then, in half lengths, where
    # the windscreen starts and ends and where the rear window ends and starts.
    half, belt, roof, nose, front, rear, tail = (
        (2.3, 0.92, 1.44, 0.55, 0.05, -0.5, -0.75), (2.0, 0.95, 1.48, 0.5, 0.05, -0.8, -0.98),
        (2.3, 1.08, 1.72, 0.5, 0.1, -0.85, -0.98), (2.6, 1.15, 2.1, 0.75, 0.45, -0.97, -0.99),
    )[int(rng.choice(4, p=[0.4, 0.32, 0.2, 0.08]))]  # fmt: skip
    w, nose, front, rear, tail = 0.92, half * nose, half * front, half * rear, half * tail
    layers = (
        (-half + 0.1, half - 0.15, w - 0.06, 0.2), (-half, half, w, 0.5),
        (-half + 0.05, half - 0.25, w - 0.05, belt - 0.12), (-half + 0.12, nose, w - 0.1, belt),
        (rear, front, w - 0.26, roof - 0.06), (rear + 0.1, front - 0.15, w - 0.35, roof),
    )  # fmt: skip
    rings = [(x0, x1, -y, y, z) for x0, x1, y, z in layers]
    rings.insert(4, (tail, nose, -w + 0.1, w - 0.1, belt))
    at = (along, left, 0.0)
    for low, high, skin in ((0, 1, paint), (1, 2, paint), (2, 3, paint), (4, 5, glass), (5, 6, paint)):
        mesh.block(at, rings[low], rings[high], skin, yaw_rad)
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)

    def place(x: float, y: float, z: float) -> np.ndarray:
        return np.array([along + c * x - s * y, left + s * x + c * y, z])

    for y in (-1.0, 1.0):
        for x in (half * 0.62, -half * 0.62):
            mesh.tube(place(x, y * (w - 0.22), 0.32), place(x, y * (w + 0.01), 0.32), (0.32, 0.32), black, 14)
            mesh.tube(place(x, y * w, 0.32), place(x, y * (w + 0.02), 0.32), (0.2, 0.19), steel, 10)
        mirror = nose - 0.3
        mesh.tube(place(mirror, y * (w - 0.1), belt), place(mirror, y * (w + 0.1), belt), (0.09, 0.07), paint, 6)
        for foot, head in ((nose, front), (tail, rear), ((front + rear) / 2, (front + rear) / 2)):
            pillar = place(foot, y * (w - 0.1), belt), place(head, y * (w - 0.25), roof - 0.04)
            mesh.tube(*pillar, (0.05, 0.05), paint, 5)
        for x, z, lamp in ((half - 0.18, 0.66, (0.7, 0.7, 0.65)), (-half + 0.01, 0.72, (0.45, 0.02, 0.02))):
            mesh.box(place(x, y * (w - 0.28), z), (0.12, 0.32, 0.14), Surface(Material.PLAIN, lamp), yaw_rad)
    for x in (half, -half):
        mesh.box(place(x, 0.0, 0.42), (0.04, 0.52, 0.12), Surface(Material.PLAIN, (0.6, 0.6, 0.55)), yaw_rad)
        mesh.box(place(x * 0.99, 0.0, 0.25), (0.08, 1.5, 0.13), black, yaw_rad)
