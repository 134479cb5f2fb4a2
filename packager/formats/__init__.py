"""One module per format, each with `RECIPES`, `variant(recipe)` and `convert(...)`."""
