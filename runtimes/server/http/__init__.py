"""The HTTP side of the server: schema, guard, replies, the page."""
