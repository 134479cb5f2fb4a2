"""The HTTP server: from a request in any dialect to the runtime's tokens, and back."""

# The packages of the server, and what they need in their turn. msgspec is compiled, and so has a
# wheel for each platform; the others are pure Python.
REQUIRES = ("starlette", "uvicorn", "anyio", "click", "h11", "idna", "msgspec", "typing_extensions")
