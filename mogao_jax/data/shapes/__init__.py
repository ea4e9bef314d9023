"""The embedded world: coloured shapes on canvases of many sizes, with the truth known.

from mogao_jax.data.shapes.placement import random_scene
from mogao_jax.data.shapes.render import render
from mogao_jax.data.shapes.world import ShapesSource
"""
