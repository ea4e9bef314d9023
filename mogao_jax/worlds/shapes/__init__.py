"""The embedded world: coloured shapes on canvases of many sizes, with the truth known.

from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.world import ShapesSource
"""
