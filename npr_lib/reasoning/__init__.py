"""What a parallel response is: grammar, tag tokens, layout, trajectory. Imports no other room.

parse, render                              text <-> reasoning graph
STYLES, Style                              what is written around the tags
add_tag_tokens, TagIds, StyleIds, render_ids    tags and styles as tokens
layout, dense_mask, LayoutError            positions and visibility
Trajectory                                 a response as it was decoded
"""

from npr_lib.reasoning.graph import ReasoningGraph
from npr_lib.reasoning.layout import Layout, LayoutError, layout
from npr_lib.reasoning.mask import dense_mask
from npr_lib.reasoning.schema import parse, render
from npr_lib.reasoning.style import STYLES, Style
from npr_lib.reasoning.tokens import StyleIds, TagIds, add_tag_tokens, render_ids
from npr_lib.reasoning.trajectory import Trajectory

__all__ = [
    "STYLES",
    "Layout",
    "LayoutError",
    "ReasoningGraph",
    "Style",
    "StyleIds",
    "TagIds",
    "Trajectory",
    "add_tag_tokens",
    "dense_mask",
    "layout",
    "parse",
    "render",
    "render_ids",
]
