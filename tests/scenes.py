"""Synthetic scenes with labels for five tasks at every pixel or picture: small shapes in front of a wall.

A disc is a sphere seen from the front and a square is a tilted plane, each at a depth of its own. Red light falls from
the left, green light from above and blue light from the front, and distance darkens: so colour and shading say what a
thing is, where it is and how it is turned.
"""

import functools

import datasets
import numpy as np

SHAPES = ("disc", "square")
TASKS = {
    "shape": {"kind": "classification", "size": 2},  # of the nearest thing
    "distance": {"kind": "regression", "tolerance": 0.1},  # and how near it is
    "seg": {"kind": "segmentation", "size": 3},  # wall, disc, square
    "depth": {"kind": "depth"},
    "normals": {"kind": "normals"},
}
WALL = 3.0
COLOURS = np.array([[0.8, 0.8, 0.8], [1.0, 0.6, 0.5], [0.5, 0.7, 1.0]])
LIGHTS = np.array([[-0.7, 0.0, 0.7], [0.0, -0.7, 0.7], [0.0, 0.0, 1.0]])  # of each colour: right, down, to the viewer
SLOPES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # a plane is turned by 45 degrees


@functools.cache
def scenes(n: int, seed: int = 0, size: int = 16) -> datasets.Dataset:
    """`n` processed pictures of size x size pixels, each with one or two shapes, and their labels."""
    rng = np.random.default_rng([seed, n])
    features = datasets.Features(
        pixel_values=datasets.Array3D((3, size, size), "float32"),
        shape=datasets.ClassLabel(names=list(SHAPES)),
        distance=datasets.Value("float32"),
        seg=datasets.Array2D((size, size), "int64"),
        depth=datasets.Array2D((size, size), "float32"),
        normals=datasets.Array3D((3, size, size), "float32"),
    )
    rows = [_scene(rng, size) for _ in range(n)]
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features).with_format("torch")


def _scene(rng: np.random.Generator, size: int) -> dict:
    seg = np.zeros((size, size), np.int64)
    depth = np.full((size, size), WALL)
    normals = np.zeros((3, size, size))
    normals[2] = 1
    y, x = np.mgrid[:size, :size]
    things = sorted(zip(rng.uniform(1, 2.5, 2), rng.integers(0, 2, 2), strict=True), reverse=True)
    for distance, shape in things[rng.integers(0, 2) :]:  # the nearer one last, so that it covers the other
        radius = rng.uniform(0.25, 0.4) * size
        row, column = rng.uniform(radius, size - radius, 2)
        u, v = (x - column) / radius, (y - row) / radius
        if SHAPES[shape] == "disc":
            inside = u**2 + v**2 < 1
            facing = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
            normal, near = np.stack([u, v, facing]), distance - 0.3 * facing
        else:
            inside = np.maximum(abs(u), abs(v)) < 0.9
            slope = SLOPES[rng.integers(4)]
            flat = np.array([*-slope, 1]) / np.sqrt(1 + slope @ slope)
            normal = np.broadcast_to(flat[:, None, None], normals.shape)
            near = distance - 0.2 * (slope[0] * u + slope[1] * v)
        seg[inside], depth[inside] = shape + 1, near[inside]
        normals[:, inside] = normal[:, inside]
    light = np.clip(np.einsum("lc,chw->lhw", LIGHTS, normals), 0.1, 1) * 1.5 / (0.5 + depth)
    pixels = COLOURS[seg].transpose(2, 0, 1) * light + rng.normal(scale=0.02, size=(3, size, size))
    return {
        "pixel_values": (2 * pixels - 1).astype(np.float32),
        "shape": int(shape),
        "distance": float(distance),
        "seg": seg,
        "depth": depth.astype(np.float32),
        "normals": normals.astype(np.float32),
    }
