"""The labeling interface: layouts, style and guidelines, and the label configs that are rendered from them."""
