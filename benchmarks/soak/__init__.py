"""The soak: a served bundle under clients that behave badly. See __main__.py."""
