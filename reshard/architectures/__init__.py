"""One declarative table per model family: which module plays which part, and how its rows are laid out."""

from .load import families, for_model_type
from .schema import Architecture, Choice, Module

__all__ = ["Architecture", "Choice", "Module", "families", "for_model_type"]
